"""Trains every case of `fsdp2_trainer_cases` with SAMTrainer on this rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from fsdp2_trainer_cases import ACCUMULATION, CASES, MICRO_BATCH, UPDATES, Case, dataset, load_model, save_model
from ranks import leave
from replicas import LEARNING_RATE, RHO, trainable
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.distributed import DistributedConfig

from sam_hf import SAMTrainer, SAMTrainingArguments


class NotFiniteOnOneRank(SAMTrainer):
    passes = 0

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.passes += 1
        first_of_the_second_update = self.passes == 2 * ACCUMULATION + 1
        return loss * torch.nan if first_of_the_second_update and self.args.process_index == 1 else loss


class WeightsAtStepEnd(TrainerCallback):
    def __init__(self):
        self.weights: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        whole = [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in trainable(model)]
        self.weights.append(torch.cat([w.flatten() for w in whole]).clone())


def run(name: str, case: Case, checkpoint: Path, out: Path) -> None:
    args = SAMTrainingArguments(
        str(out / name),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        sam_rho=RHO,
        max_steps=UPDATES,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **case.arguments,
    )
    model = load_model(checkpoint, case, distributed_config=DistributedConfig(**case.sizes))
    callback = WeightsAtStepEnd()
    trainer_class = NotFiniteOnOneRank if case.not_finite else SAMTrainer
    trainer = trainer_class(model=model, args=args, train_dataset=dataset(), callbacks=[callback])
    trainer.train()
    kinds = {"sharded" if isinstance(p, DTensor) else "replicated" for p in trainable(model)}
    result = {"weights": torch.stack(callback.weights), "kinds": kinds, "log": trainer.state.log_history}
    torch.save(result, out / f"{name}-{args.process_index}.pt")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        save_model(folder / "model")
    dist.barrier()
    for case_name, each in CASES.items():
        run(case_name, each, folder / "model", folder)
    leave()

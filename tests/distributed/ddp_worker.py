"""Trains a tiny model with SAMTrainer on each of two ranks, for every case, and saves the results of each rank."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from ddp_cases import CASES, MICRO_BATCH, UPDATES, dataset, make_model
from ranks import leave
from replicas import LEARNING_RATE, flat
from transformers import TrainerCallback

from sam_hf import SAMTrainer, SAMTrainingArguments


class OverflowOnOneRank(SAMTrainer):
    """Gives every pass of rank 1's third update an infinite gradient, like an fp16 overflow."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.state.global_step == 2 and self.args.process_index == 1:
            loss = loss * torch.inf
        return (loss, None) if return_outputs else loss


class WeightsAtStepEnd(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(flat(model))


def run(name: str, out: Path) -> None:
    case = dict(CASES[name])
    overflow = case.pop("overflow", False)
    accumulation = case.get("gradient_accumulation_steps", 1)
    args = SAMTrainingArguments(
        str(out / name),
        per_device_train_batch_size=MICRO_BATCH,
        max_steps=UPDATES,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        **case,
    )
    callback = WeightsAtStepEnd()
    cls = OverflowOnOneRank if overflow else SAMTrainer
    data = dataset(2 * MICRO_BATCH * accumulation * UPDATES)
    trainer = cls(model=make_model(), args=args, train_dataset=data, callbacks=[callback])
    if overflow:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.train()
    torch.save(
        {"weights": torch.stack(callback.weights), "log": trainer.state.log_history},
        out / f"{name}-{args.process_index}.pt",
    )


if __name__ == "__main__":
    for case_name in CASES:
        run(case_name, Path(sys.argv[1]))
    leave()

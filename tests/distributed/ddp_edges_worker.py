"""Trains every case of `ddp_edges` on this rank, and saves its data, its reductions and its weights."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from ddp_edges import (
    CASES,
    LABELS_ON_ONE_RANK,
    MICRO_BATCH,
    UNLIKE_SHARES,
    Case,
    dataset,
    make_model,
    make_tagger,
    tagged,
)
from ranks import leave
from replicas import LEARNING_RATE, RHO, flat
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from sam_hf import SAMTrainer, SAMTrainingArguments

UPDATES = 4


class Recorder(SAMTrainer):
    """Records the micro-batches of each update, and the passes that reduced gradients."""

    def __init__(self, case: Case, **kwargs):
        super().__init__(**kwargs)
        self.case = case
        self.windows: list[list[dict]] = []
        self.reductions: list[set[int]] = []
        self.passes = 0
        if case.bucket_views:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    def get_batch_samples(self, *args):
        batches, num_items = super().get_batch_samples(*args)
        if batches:
            self.windows.append([dict(batch) for batch in batches])
            self.reductions.append(set())
            self.passes = 0
        return batches, num_items

    def training_step(self, model, inputs, *args):
        ddp = getattr(model, "_orig_mod", model)
        assert isinstance(ddp, DistributedDataParallel)
        assert ddp.gradient_as_bucket_view == self.case.bucket_views
        if not hasattr(self, "_hooked"):
            self._hooked = True
            ddp.register_comm_hook(None, self._reduce)
        return super().training_step(model, inputs, *args)

    def _reduce(self, state, bucket):
        self.reductions[-1].add(self.passes - 1)
        return allreduce_hook(None, bucket)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if torch.is_grad_enabled():
            faulty = self.passes in self.case.not_finite and self.args.process_index == 1
            if faulty and self.state.global_step == 1:
                loss = loss * torch.nan
            self.passes += 1
        return (loss, None) if return_outputs else loss


class StateAtStepEnd(TrainerCallback):
    def __init__(self):
        self.weights: list[torch.Tensor] = []
        self.statistics: list[dict[str, torch.Tensor]] = []
        self.without_gradient: list[set[str]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.without_gradient.append({name for name, p in model.named_parameters() if p.grad is None})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(flat(model))
        self.statistics.append({name: buffer.clone() for name, buffer in model.named_buffers()})


def run(name: str, case: Case, model: nn.Module, data: list[dict], out: Path) -> None:
    args = SAMTrainingArguments(
        str(out / name),
        per_device_train_batch_size=MICRO_BATCH,
        sam_rho=RHO,
        max_steps=UPDATES,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **copy.deepcopy(case.arguments),  # Trainer removes entries of the dictionaries
    )
    state = StateAtStepEnd()
    trainer = Recorder(
        case,
        model=model,
        args=args,
        train_dataset=data,
        callbacks=[state],
    )
    trainer.train()
    result = {
        "weights": torch.stack(state.weights),
        "statistics": state.statistics,
        "without_gradient": state.without_gradient,
        "windows": trainer.windows,
        "reductions": trainer.reductions,
    }
    torch.save(result, out / f"{name}-{args.process_index}.pt")


if __name__ == "__main__":
    for case_name, edge in CASES.items():
        run(case_name, edge, make_model(edge.parts), dataset(edge.examples), Path(sys.argv[1]))
    for communicates in (False, True):
        tagger = make_tagger(communicates)
        run(f"tagger {communicates}", LABELS_ON_ONE_RANK, tagger, tagged(MICRO_BATCH, 64), Path(sys.argv[1]))
    run("tagger, shares", UNLIKE_SHARES, make_tagger(False), tagged(MICRO_BATCH + 2, 64), Path(sys.argv[1]))
    leave()

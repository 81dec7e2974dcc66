"""Trains a tiny model with each method on each of two ranks, and again from the middle of the run."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import torch
from ddp_cases import dataset
from method_cases import CASES, LEARNING_RATE, MICRO_BATCH, MOMENTUM, RESUMED, UPDATES, make_model
from ranks import leave
from reference_methods import ARGUMENTS
from replicas import flat

from sam_hf import SAMTrainer, SAMTrainingArguments

ACCUMULATION = 2


def train(name: str, folder: Path, resume: str | None = None) -> torch.Tensor:
    case = dict(CASES[name])
    targets = case.pop("targets", "all")
    args = SAMTrainingArguments(
        str(folder),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=UPDATES,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        optim_args=f"momentum={MOMENTUM}",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="steps" if name in RESUMED else "no",
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        sam_target_modules=targets,
        **{ARGUMENTS[key]: value for key, value in case.items()},
    )
    trainer = SAMTrainer(
        model=make_model(), args=args, train_dataset=dataset(2 * MICRO_BATCH * ACCUMULATION * UPDATES)
    )
    trainer.train(resume_from_checkpoint=resume)
    return flat(trainer.model)


if __name__ == "__main__":
    gc.freeze()  # as in conftest.py
    out = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    for name in CASES:
        folder = out / name.replace(" ", "_")
        weights = {"whole": train(name, folder)}
        if name in RESUMED:
            weights["resumed"] = train(name, folder, str(folder / "checkpoint-3"))
        torch.save(weights, out / f"{name}-{rank}.pt")
    leave()

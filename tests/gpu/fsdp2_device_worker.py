"""Trains a tiny model under FSDP2 with SAMTrainer, resumes from the middle, and saves both runs' whole weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny import bert, sentences
from transformers import set_seed

from sam_hf import SAMTrainer, SAMTrainingArguments

UPDATES = 6


def make(folder: Path, sharded: bool, **changes) -> SAMTrainer:
    settings = {
        "max_steps": UPDATES,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": UPDATES // 2,
        "report_to": "none",
        "sam_rho": 0.1,
    }
    if sharded:
        settings["fsdp"] = True
        settings["fsdp_config"] = {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["BertLayer"],
            "state_dict_type": "SHARDED_STATE_DICT",
        }
    set_seed(0)
    args = SAMTrainingArguments(str(folder), **(settings | changes))
    return SAMTrainer(model=bert(dtype=torch.float32), args=args, train_dataset=sentences(96))


def whole_weights(trainer: SAMTrainer) -> dict[str, torch.Tensor]:
    state = trainer.model.state_dict()
    return {n: (t.full_tensor() if hasattr(t, "full_tensor") else t).cpu() for n, t in state.items()}


if __name__ == "__main__":
    out, options = Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:])
    options = {name: int(value) for name, value in options.items()}
    trainer = make(out / "sharded", True, **options)
    trainer.train()
    uninterrupted = whole_weights(trainer)
    resumed = make(out / "sharded", True, **options)
    resumed.train(resume_from_checkpoint=str(out / "sharded" / f"checkpoint-{UPDATES // 2}"))
    again = whole_weights(resumed)
    if trainer.args.process_index == 0:
        torch.save({"weights": uninterrupted, "resumed": again, "log": trainer.state.log_history}, out / "sharded.pt")
    trainer.accelerator.end_training()

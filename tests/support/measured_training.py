"""A tiny training run that measures sharpness at its evaluations, and what it logged."""

from __future__ import annotations

from tiny import perceptron, points, trainer_of
from transformers import Trainer

from sam_hf import SAMTrainer

NAMES = {"eval_sharpness_lambda_max", "eval_sharpness_m", "eval_sharpness_runtime"}
STEPS = {"eval_strategy": "steps", "eval_steps": 2, "sam_rho": 0.2}


def entries(trainer, key="eval_loss"):
    return [entry for entry in trainer.state.log_history if key in entry]


def of_sharpness(metrics):
    return {key: value for key, value in metrics.items() if "sharpness" in key and "sam_" not in key}


def built(output_dir, callback=None, trainer_class=SAMTrainer, model=None, data=None, **options):
    data = points(32) if data is None else data
    options = STEPS | {"eval_dataset": data[:8]} | options
    trainer = trainer_of(
        perceptron() if model is None else model,
        data,
        output_dir,
        trainer_class=trainer_class,
        callbacks=[callback] if callback is not None and trainer_class is SAMTrainer else [],
        **options,
    )
    if callback is not None and trainer_class is Trainer:
        callback.add_to(trainer)
    return trainer

"""Trains with slices where only one rank's examples tell what the loss is a mean over, and saves how it ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from ranks import leave
from tiny import flat, perceptron, points, trained
from torch.nn.functional import cross_entropy
from transformers import Trainer

CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
BATCH = 4


def with_class_weights(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs["logits"], labels, CLASS_WEIGHTS)


def per_example(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs["logits"], labels, reduction="none", ignore_index=-100).mean()


def data(of_second_rank) -> list[dict[str, torch.Tensor]]:
    """All labels of the first rank are 0. The ranks take micro-batches in turn."""
    rows = points(64)
    for place, row in enumerate(rows):
        second = place // BATCH % 2 == 1
        row["labels"] = torch.tensor(of_second_rank(place % BATCH, place) if second else 0)
    return rows


def run(name: str, out: Path, rows, loss, trainer_class=None, **options) -> None:
    model = perceptron()
    classes = {} if trainer_class is None else {"trainer_class": trainer_class}
    run_options = {"compute_loss_func": loss, "max_steps": 6, "gradient_accumulation_steps": 2, "sam_rho": 1e-13}
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    error, logs = None, []
    try:
        trainer = trained(model, rows, out / name, **classes, **(run_options | options))
        rank, logs = trainer.args.process_index, trainer.state.log_history
    except ValueError as refusal:
        error = str(refusal)
        rank = torch.distributed.get_rank()
    result = {"error": error, "weights": flat(model).tolist(), "log": [e for e in logs if "loss" in e]}
    (out / f"{name}-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    classes = data(lambda place, index: place // 2)
    unlabelled = data(lambda place, index: -100 if place == 0 else 1)
    for name, options in {"slices": {"sam_m": 2}, "fraction": {"sam_ascent_fraction": 0.5}}.items():
        run(f"class weights, {name}", out, classes, with_class_weights, **options)
        run(f"examples, {name}", out, unlabelled, per_example, **options)
    run("examples, plain", out, unlabelled, per_example, trainer_class=Trainer)
    late = data(lambda place, index: -100 if place == 0 and index >= 48 else 1)
    run("late", out, late, per_example, sam_m=2, max_steps=12)
    auto = {"sam_rho": None, "sam_rho_schedule": "auto", "logging_steps": 3}
    run("auto", out, data(lambda place, index: place % 3), None, **auto)
    leave()

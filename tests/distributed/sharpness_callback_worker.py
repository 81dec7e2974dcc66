"""Trains on each of two ranks with and without sharpness at every evaluation, and saves the results of each rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from ranks import leave
from tiny import perceptron, points, snapshot, trainer_of
from torch import nn

from sam_hf import SharpnessCallback

# The number measured is odd, and there are more examples than the callback uses
EXAMPLES, MEASURED = 30, 9
CASES: dict[str, dict[str, Any]] = {
    "sam": {},
    "shared": {"sam_sync_perturbation": True, "gradient_accumulation_steps": 2},
    # Each rank keeps its own running statistics between the updates
    "BatchNorm": {"sam_method": "none", "ddp_broadcast_buffers": False},
}


def callback() -> SharpnessCallback:
    return SharpnessCallback(max_examples=MEASURED, m=1, rho=0.1, tolerance=1e-6)


def model(case: str) -> nn.Module:
    return perceptron((lambda: nn.BatchNorm1d(6)) if case == "BatchNorm" else None, dropout=0.1)


def run(out: Path, case: str, measured: bool) -> dict[str, Any]:
    """Return the weights after each evaluation, the returned metrics, and the log."""
    weights: list[dict[str, torch.Tensor]] = []
    returned: list[dict[str, float]] = []
    trainer = trainer_of(
        model(case),
        points(EXAMPLES),
        out,
        callbacks=[callback()] if measured else [],
        eval_dataset=points(8),
        eval_strategy="steps",
        eval_steps=2,
        sam_rho=0.2,
        **CASES[case],
    )
    evaluate = trainer.evaluate

    def remember(*args, **kwargs):
        metrics = evaluate(*args, **kwargs)
        weights.append(snapshot(trainer.model))
        returned.append(dict(metrics))
        return metrics

    trainer.evaluate = remember
    trainer.train()
    remember()
    return {"weights": weights, "returned": returned, "logged": trainer.state.log_history}


def main(out: Path) -> None:
    results = {}
    for case in CASES:
        for measured in (True, False):
            results[case, measured] = run(out / "run", case, measured)
    torch.save(results, out / f"{torch.distributed.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The cases that the two-rank worker trains and the single-process reference computes again."""

from __future__ import annotations

import torch
from replicas import RHO
from torch import nn

MICRO_BATCH = 4
UPDATES = 4

CASES = {
    "local": {"sam_rho": RHO},
    "synchronised": {"sam_rho": RHO, "sam_sync_perturbation": True},
    "local, accumulated": {"sam_rho": RHO, "gradient_accumulation_steps": 3},
    "synchronised, accumulated": {
        "sam_rho": RHO,
        "sam_sync_perturbation": True,
        "gradient_accumulation_steps": 3,
    },
    "local, m = micro-batch": {"sam_rho": RHO, "gradient_accumulation_steps": 3, "sam_m": MICRO_BATCH},
    "synchronised, m = micro-batch": {
        "sam_rho": RHO,
        "sam_sync_perturbation": True,
        "gradient_accumulation_steps": 3,
        "sam_m": MICRO_BATCH,
    },
    "local, two ascent steps": {"sam_rho": RHO, "sam_ascent_steps": 2},
    "overflow": {"sam_rho": RHO, "overflow": True},
    "overflow, synchronised": {"sam_rho": RHO, "overflow": True, "sam_sync_perturbation": True},
}


class Regression(nn.Module):
    """Two layers with a mean squared error, in float64."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 1)

    def forward(self, x, labels=None):
        prediction = self.second(torch.tanh(self.first(x))).squeeze(-1)
        return {"loss": nn.functional.mse_loss(prediction, labels), "prediction": prediction}


def make_model() -> Regression:
    torch.manual_seed(0)
    return Regression().double()


def dataset(size: int) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(size, generator=generator, dtype=torch.float64)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]

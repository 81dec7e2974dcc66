"""The cases that the two-rank worker trains with every method, with the names that the reference uses."""

from __future__ import annotations

import torch
from ddp_cases import Regression

MICRO_BATCH = 4
UPDATES = 5
RHO = 0.3
LEARNING_RATE = 0.05
MOMENTUM = 0.9

METHODS = {
    "sam": {},
    "asam": {},
    "gsam": {},
    "wsam": {},
    "decoupled": {"method": "wsam", "options": {"decouple": True}},
    "fsam": {},
    "vasso": {},
    "looksam": {"interval": 2},
    "msam": {},
}
AXES = {
    "local": {},
    "synchronised": {"synchronised": True},
    "local, m = micro-batch": {"m": MICRO_BATCH},
    "synchronised, m = micro-batch": {"m": MICRO_BATCH, "synchronised": True},
    "local, a quarter": {"fraction": 0.25},
    "synchronised, a quarter": {"fraction": 0.25, "synchronised": True},
    "local, every second": {"interval": 2},
    "second layer": {"targets": ["second"]},
    "synchronised, second layer": {"targets": ["second"], "synchronised": True},
}
REFUSED = {"msam": ("m", "fraction")}


def case(method: str, axes: str) -> dict | None:
    settings = {"method": method, "rho": RHO} | METHODS[method] | AXES[axes]
    return None if any(name in settings for name in REFUSED.get(method, ())) else settings


CASES = {f"{method}, {axes}": case(method, axes) for method in METHODS for axes in AXES if case(method, axes)}
# In these cases each rank has its own average, or all ranks share one
RESUMED = [name for name in CASES if name.split(", ")[0] in ("fsam", "vasso", "looksam") and "m =" not in name]


def make_model() -> Regression:
    torch.manual_seed(0)
    return Regression().double()

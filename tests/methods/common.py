"""Models and trainers for the tests that every method in the table has to pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import bert, sentences, trainer_of

from sam_hf.methods import METHODS

# What a method needs to have an effect within six updates. The others run with their defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "looksam": {"sam_interval": 3},
    "nbar": {"sam_rho": None},
}
# Methods that need adapters
ADAPTERS = ["nbar"]
PERTURBING = [method for method in METHODS if method not in ADAPTERS]
RUN = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "sam_rho": 0.1,
    "max_steps": 6,
}


def model_for(method: str, dropout: float = 0.0, dtype: torch.dtype = torch.float32):
    model = bert(dropout=dropout, dtype=dtype)
    if method not in ADAPTERS:
        return model
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).to(dtype)


def run_of(method: str, output_dir, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **changes: Any):
    """Return `(model, trainer)`, not trained yet. 22 examples: an epoch has windows of 4+4, 4+4 and 4+2."""
    model = model_for(method, dropout, dtype)
    options = RUN | {"sam_method": method} | SETTINGS.get(method, {}) | changes
    return model, trainer_of(model, options.pop("data", None) or sentences(22), output_dir, **options)


def updates(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]

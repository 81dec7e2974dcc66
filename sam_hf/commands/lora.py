"""Low-rank adapters, through peft, on request."""

from __future__ import annotations

from typing import Any

from .cli import UsageError


def with_lora(model: Any, rank: int | None, alpha: float, dropout: float, targets: list[str] | None) -> Any:
    """`model` with trainable adapters of `rank` and a trainable head, or as it is where `rank` is 0 or `None`."""
    if not rank:
        return model
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise UsageError('lora_r needs peft: pip install "sam-hf[peft]"') from error
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets or "all-linear",
    )
    return get_peft_model(model, config)

"""The channels-last layout of a model's weights, and optimizer states that lie in memory as the weights do."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback

from ..errors import UsageError


def to_channels_last(model: Any, args: Any) -> Any:
    """`model` with its convolutions' weights channels last; they hand the layout on to what they compute."""
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UsageError("channels_last cannot go with FSDP, which shards weights in the usual layout alone")
    return model.to(memory_format=torch.channels_last)


class StateLayout(TrainerCallback):
    """
    Lays the optimizer's states out as their weights, when a checkpoint has them in the other layout.

    torch's fused AdamW reads weights, gradients and states side by side as they lie in memory, and is silently wrong
    where they lie differently.
    """

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        for parameter, states in getattr(optimizer, "state", {}).items():
            for name, value in states.items():
                if getattr(value, "shape", None) == parameter.shape and value.stride() != parameter.stride():
                    states[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

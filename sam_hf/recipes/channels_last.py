"""The channels-last memory layout of a model's weights, and optimizer states in the same layout."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback

from ..errors import UsageError


def to_channels_last(model: Any, args: Any) -> Any:
    """Return `model` with convolution weights in the channels-last layout, which their outputs then have too."""
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise UsageError("channels_last cannot go with FSDP, which shards weights only in the usual layout")
    return model.to(memory_format=torch.channels_last)


class StateLayout(TrainerCallback):
    """
    Gives the optimizer's states the layout of their weights, if a checkpoint has them in the other layout.

    torch's fused AdamW reads weights, gradients and states in the order in which they lie in memory. It is silently
    wrong if the orders differ.
    """

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        for parameter, states in getattr(optimizer, "state", {}).items():
            for name, value in states.items():
                if getattr(value, "shape", None) == parameter.shape and value.stride() != parameter.stride():
                    states[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

"""Options that change a model before it is trained: LoRA adapters, and the channels-last memory layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback

from ..errors import UsageError

if TYPE_CHECKING:
    from ..inputs.options import ModelArguments


def with_lora(model: Any, arguments: ModelArguments, task: str | None = None) -> Any:
    """
    Return `model` with trainable adapters and a trainable head, or `model` itself if `lora_r` is not given.

    Args:
        arguments (`ModelArguments`): the `lora_*` options.
        task (`str`, *optional*): peft's name of the task, by which it knows the head. Without it, the head is the
            last linear layer that has one output per class.
    """
    if not arguments.lora_r:
        return model
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise UsageError('lora_r needs peft: pip install "sam-hf[peft]"') from error
    head = None if task else [_head_name(model)]
    config = LoraConfig(
        task_type=TaskType(task) if task else None,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]  # peft takes floats too
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or "all-linear",
        exclude_modules=head,
        modules_to_save=head,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"lora_target_modules={arguments.lora_target_modules}: {error}") from error


def _head_name(model: Any) -> str:
    heads = [n for n, module in model.named_modules() if getattr(module, "out_features", 0) == model.config.num_labels]
    if not heads:
        raise UsageError(f"lora_r: {type(model).__name__} has no linear layer that gives the logits")
    return heads[-1]


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

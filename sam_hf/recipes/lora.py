"""Low-rank adapters, through peft, on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..inputs.options import ModelArguments


def with_lora(model: Any, arguments: ModelArguments, head: str | None = None, task: str = "SEQ_CLS") -> Any:
    """
    `model` with trainable adapters and a trainable head, or as it is where no rank is given.

    Args:
        arguments (`ModelArguments`): the `lora_*` options.
        head (`str`, *optional*): name of the head's module, where peft does not know it from the task.
        task (`str`, *optional*, defaults to `"SEQ_CLS"`): peft's name of the task; no use where `head` is given.
    """
    if not arguments.lora_r:
        return model
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise UsageError('lora_r needs peft: pip install "sam-hf[peft]"') from error
    config = LoraConfig(
        task_type=None if head else TaskType(task),
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,  # type: ignore[arg-type]  # peft takes floats too
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or "all-linear",
        exclude_modules=[head] if head else None,
        modules_to_save=[head] if head else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"lora_target_modules={arguments.lora_target_modules}: {error}") from error


def head_name(model: Any) -> str:
    """The module that gives the logits: the last linear one with an output a class."""
    heads = [n for n, module in model.named_modules() if getattr(module, "out_features", 0) == model.config.num_labels]
    if not heads:
        raise UsageError(f"lora_r: {type(model).__name__} has no linear layer that gives the logits")
    return heads[-1]

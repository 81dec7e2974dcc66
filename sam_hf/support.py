"""What SAM cannot run under: refused when the trainer is built, with what to use instead. Never silently wrong."""

from __future__ import annotations

from typing import Any

from transformers.utils import is_sagemaker_mp_enabled

# Trainers that pick their data by a counter which `training_step` advances: a second pass would see another batch
_STATEFUL_TRAINERS = ("GRPOTrainer", "RLOOTrainer")


def check_supported(trainer: Any) -> None:
    """
    Raise `ValueError` where two passes an update would not be two passes.

    Args:
        trainer ([`~transformers.Trainer`]): a trainer whose accelerator exists.
    """
    args = trainer.args
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    optimizer = str(getattr(args.optim, "value", args.optim))
    refusals = [
        (
            trainer.is_deepspeed_enabled,
            "DeepSpeed, whose engine steps the optimizer inside every backward pass. Use DDP, or FSDP2 for models "
            'that do not fit one device (fsdp=True, fsdp_config={"version": 2})',
        ),
        (is_sagemaker_mp_enabled(), "SageMaker model parallelism. Use DDP or FSDP2"),
        (args.device.type == "xla", "XLA devices. Use CUDA, MPS or CPU devices"),
        (
            plugin is not None and getattr(plugin, "fsdp_version", 1) != 2,
            'FSDP1, whose flat shards have no global norm. Use FSDP2 (fsdp_config={"version": 2})',
        ),
        (
            parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled),
            "context or sequence parallelism, which shard the inputs in place. Use DDP or FSDP2",
        ),
        (
            "lomo" in optimizer or "layerwise" in optimizer,
            f"optim={optimizer!r}, which updates the weights inside the backward pass. Use an optimizer that steps "
            "after it",
        ),
        (
            any(base.__name__ in _STATEFUL_TRAINERS for base in type(trainer).__mro__),
            f"{type(trainer).__name__}, which draws new data at every training step. Use a trainer whose training "
            "step is one pass over the inputs it is given",
        ),
    ]
    for refused, reason in refusals:
        if refused:
            method = trainer.sam_args.sam_method
            raise ValueError(f"sam_method={method!r} does not support {reason}, or sam_method='none'.")

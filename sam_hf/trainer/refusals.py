"""What SAM cannot run under: refused when the trainer is built, with what to use instead. Never silently wrong."""

from __future__ import annotations

from typing import Any

from transformers.utils import is_sagemaker_mp_enabled

from ..update.gradients import is_fsdp

# TRL's trainers that generate completions in `training_step`, pick a batch by a counter that it advances, or account
# for rollouts in it: a second pass would be over other data, or be taken for more of it
_STATEFUL_TRAINERS = {
    "A2POTrainer",
    "AsyncDistillationTrainer",
    "AsyncGRPOTrainer",
    "DistillationTrainer",
    "GKDTrainer",
    "GOLDTrainer",
    "GRPOTrainer",
    "IWOPDTrainer",
    "OnlineDPOTrainer",
    "RLOOTrainer",
    "SDFTTrainer",
    "SDPOTrainer",
}
# Their batches hold the chosen completions of all examples, then the rejected: the first rows are not the first pairs
_STACKING_TRAINERS = {"DPOTrainer", "RewardTrainer", "TPOTrainer"}


def check_supported(trainer: Any) -> None:
    """
    Raise `ValueError` where two passes an update would not be two passes.

    Args:
        trainer ([`~transformers.Trainer`]): a trainer whose accelerator exists.
    """
    for refused, reason in (*_of_the_launch(trainer), *_of_the_data(trainer)):
        if refused:
            method = trainer.sam_args.sam_method
            raise ValueError(f"sam_method={method!r} does not support {reason}, or sam_method='none'.")


def _of_the_launch(trainer: Any) -> list[tuple[bool, str]]:
    """What gradients are computed, reduced and stepped by."""
    args = trainer.args
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    optimizer = str(getattr(args.optim, "value", args.optim))
    return [
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
            bool(args.ddp_static_graph) and args.world_size > 1 and not trainer.sam_args.sam_sync_perturbation,
            "ddp_static_graph=True, with which DDP has to reduce the first pass of all: ε is made of gradients that "
            "are not reduced. Use sam_sync_perturbation=True, or ddp_find_unused_parameters=False instead",
        ),
    ]


def _of_the_data(trainer: Any) -> list[tuple[bool, str]]:
    """What a pass covers, and how batches can be cut."""
    args = trainer.args
    return [
        (
            _slices_are_out_of_step(trainer),
            "slices (sam_m below per_device_train_batch_size, or sam_ascent_fraction) that share a perturbation "
            "between devices whose last batches differ in size (even_batches=False): one would wait for the other. "
            "Use dataloader_drop_last=True",
        ),
        (
            _stands_over(trainer, _STATEFUL_TRAINERS),
            f"{type(trainer).__name__}, which draws new data at every training step. Use a trainer whose training "
            "step is one pass over the inputs it is given",
        ),
        (
            _cuts_batches(trainer)
            and (_stands_over(trainer, _STACKING_TRAINERS) or getattr(trainer, "padding_free", False)),
            f"sam_m={trainer.sam_args.sam_m} in {type(trainer).__name__}, whose batches cannot be cut into examples "
            "(pairs stacked, or sequences packed). Use a multiple of "
            f"per_device_train_batch_size={getattr(args, 'per_device_train_batch_size', None)}",
        ),
        (
            trainer.sam_args.sam_ascent_fraction < 1 and _stands_over(trainer, _STACKING_TRAINERS),
            f"sam_ascent_fraction={trainer.sam_args.sam_ascent_fraction} in {type(trainer).__name__}, whose batches "
            "stack pairs: their first rows are not the first examples. Leave it out",
        ),
    ]


def _stands_over(trainer: Any, names: set[str]) -> bool:
    """Whether one of TRL's classes of these names is below: a user's own DistillationTrainer is another matter."""
    return any(base.__name__ in names and base.__module__.startswith("trl.") for base in type(trainer).__mro__)


def _cuts_batches(trainer: Any) -> bool:
    """Whether a perturbation is shared by fewer examples than a batch holds."""
    m = trainer.sam_args.sam_m
    return m is not None and m < trainer.args.per_device_train_batch_size


def _slices_are_out_of_step(trainer: Any) -> bool:
    """A last batch on one rank is cut into fewer slices than on another, and their ascent passes communicate."""
    args, sam = trainer.args, trainer.sam_args
    uneven = args.world_size > 1 and not trainer.accelerator.even_batches and not args.dataloader_drop_last
    shared = sam.sam_sync_perturbation or trainer.is_fsdp_enabled or is_fsdp(trainer.model)
    return uneven and shared and (_cuts_batches(trainer) or sam.sam_ascent_fraction < 1)

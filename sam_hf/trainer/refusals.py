"""Checks that refuse, when the trainer is built, what SAM does not support. Each error names an alternative."""

from __future__ import annotations

import inspect
from typing import Any

from transformers.utils import is_sagemaker_mp_enabled

from ..update.gradients import is_fsdp

# The batches of these TRL trainers hold the chosen completions of all examples, then the rejected ones: the first rows
# are not the first pairs
_STACKING_TRAINERS = {"DPOTrainer", "RewardTrainer", "TPOTrainer"}


def check_supported(trainer: Any) -> None:
    """
    Raise `ValueError` for a setting in which SAM's passes would not be what the user asked for.

    Args:
        trainer ([`~transformers.Trainer`]): a trainer whose accelerator exists.
    """
    for refused, reason in (*_of_the_launch(trainer), *_of_the_data(trainer)):
        if refused:
            method = trainer.sam_args.sam_method
            raise ValueError(f"sam_method={method!r} does not support {reason}, or sam_method='none'.")


def _of_the_launch(trainer: Any) -> list[tuple[bool, str]]:
    """Return the checks of how gradients are computed, reduced and applied."""
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
            "ddp_static_graph=True, with which DDP must reduce the gradients of the first pass: epsilon is computed "
            "from gradients that are not reduced. Use sam_sync_perturbation=True, or ddp_find_unused_parameters=False "
            "instead",
        ),
    ]


def _of_the_data(trainer: Any) -> list[tuple[bool, str]]:
    """Return the checks of what a pass covers, and of how batches can be cut."""
    args = trainer.args
    return [
        (
            _slices_are_out_of_step(trainer),
            "slices (sam_m below per_device_train_batch_size, or sam_ascent_fraction) that share a perturbation "
            "between devices whose last batches differ in size (even_batches=False): one device would wait for the "
            "other. Use dataloader_drop_last=True",
        ),
        (
            draws_data(type(trainer)),
            f"{type(trainer).__name__}, which draws new data at every training step. Use a trainer whose training "
            "step is one pass over the inputs it is given",
        ),
        (
            _cuts_batches(trainer) and (_stacks_pairs(trainer) or getattr(trainer, "padding_free", False)),
            f"sam_m={trainer.sam_args.sam_m} in {type(trainer).__name__}, whose batches cannot be cut into examples "
            "(pairs stacked, or sequences packed). Use a multiple of "
            f"per_device_train_batch_size={getattr(args, 'per_device_train_batch_size', None)}",
        ),
        (
            trainer.sam_args.sam_ascent_fraction < 1 and _stacks_pairs(trainer),
            f"sam_ascent_fraction={trainer.sam_args.sam_ascent_fraction} in {type(trainer).__name__}, whose batches "
            "stack pairs: their first rows are not the first examples. Leave it out",
        ),
    ]


def draws_data(trainer_class: type) -> bool:
    """
    Return whether one of TRL's classes below makes its own data in a training step.

    Such a class generates completions, picks a batch by a counter, or counts rollouts: a second pass would cover other
    data. It does so in a `_prepare_inputs` of its own, or in a `training_step` that works on its inputs. TRL's other
    trainers only wrap `training_step` and pass its arguments on. A user's own trainers are not checked.
    """
    of_trl = [vars(base) for base in trainer_class.__mro__ if base.__module__.startswith("trl.")]
    steps = [inspect.unwrap(members["training_step"]) for members in of_trl if "training_step" in members]
    return any("_prepare_inputs" in members for members in of_trl) or any(
        "inputs" in step.__code__.co_varnames for step in steps
    )


def _stacks_pairs(trainer: Any) -> bool:
    """Return whether one of TRL's stacking trainers is below. A user's own class of such a name is not refused."""
    classes = type(trainer).__mro__
    return any(base.__name__ in _STACKING_TRAINERS and base.__module__.startswith("trl.") for base in classes)


def _cuts_batches(trainer: Any) -> bool:
    """Return whether fewer examples than a batch holds share a perturbation."""
    m = trainer.sam_args.sam_m
    return m is not None and m < trainer.args.per_device_train_batch_size


def _slices_are_out_of_step(trainer: Any) -> bool:
    """Return whether ranks can cut their last batch into different numbers of slices, whose passes communicate."""
    args, sam = trainer.args, trainer.sam_args
    uneven = args.world_size > 1 and not trainer.accelerator.even_batches and not args.dataloader_drop_last
    shared = sam.sam_sync_perturbation or trainer.is_fsdp_enabled or is_fsdp(trainer.model)
    return uneven and shared and (_cuts_batches(trainer) or sam.sam_ascent_fraction < 1)

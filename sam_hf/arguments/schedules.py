"""ρ(t) and timing: which updates are the method's own, and with which radius. Pure functions."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from torch import Tensor

from ..methods import Method
from .checks import schedule_of
from .fields import SAMArguments, method_class

# The radius of the schedule "auto", as a share of the length of the optimizer's last step
AUTO_SHARE = 0.1


class UpdateKind(Enum):
    """What an update is."""

    PLAIN = "plain"  # before sam_start_ratio, or of no method at all
    SAM = "sam"
    BETWEEN = "between"  # plain, between two of the method's own (sam_interval)


def update_kind_at(args: SAMArguments, update: int, total: int) -> UpdateKind:
    """
    Args:
        args (`SAMArguments`): the arguments of the run.
        update (`int`): updates done so far, from 0.
        total (`int`): updates of the whole run.
    """
    if args.sam_method == "none" or update < updates_in(args.sam_start_ratio, total):
        return UpdateKind.PLAIN
    interval = method_class(args).default_interval if args.sam_interval is None else args.sam_interval
    return UpdateKind.BETWEEN if update % interval else UpdateKind.SAM


def updates_in(share: float, total: int) -> int:
    """⌈share · total⌉ of the decimal number that was given: in floating point .07 times 100 is above 7."""
    return math.ceil(round(share * total, 9))


def progress_at(update: int, total: int) -> float:
    """Share of the training that is done: 0 in the first update, 1 in the last."""
    return min(1.0, update / max(1, total - 1))


def follows_steps(args: SAMArguments) -> bool:
    """The radius is a share of the optimizer's last step."""
    return args.sam_method != "none" and args.sam_rho != 0 and schedule_of(args, method_class(args)) == "auto"


def rho_of(args: SAMArguments) -> float:
    """ρ before any schedule: the one given, or the method's default; `0.0` for a method that has none."""
    return float(method_class(args).default_rho or 0.0) if args.sam_rho is None else args.sam_rho


def default_radius(method: type[Method]) -> str:
    """In words, for tables: the radius of a run that gives none."""
    if not method.perturbs:
        return "no radius"
    follows = follows_steps(SAMArguments(sam_method=method.name))
    return f"auto; {method.default_rho} with another schedule" if follows else str(method.default_rho)


def radius_at(
    args: SAMArguments, update: int, total: int, optimizer: Any = None, step_length: Tensor | None = None
) -> float | Tensor:
    """
    ρ of an update of the method's own.

    Args:
        args (`SAMArguments`): the arguments of the run.
        update (`int`): updates done so far, from 0.
        total (`int`): updates of the whole run.
        optimizer (`torch.optim.Optimizer`, *optional*): whose learning rate the schedule `"lr"` follows.
        step_length (`Tensor`, *optional*): ‖w_t − w_{t−1}‖₂ of its last step, which `"auto"` follows.

    Returns:
        `float`: the radius; `0.0` for an update that is plain after all. A 0-dimensional tensor with `"auto"`, once
        there was a step.
    """
    if not method_class(args).perturbs:
        return 0.0
    rho = rho_of(args)
    low, schedule = args.sam_rho_min, schedule_of(args, method_class(args))
    if schedule == "auto":
        return 0.0 if step_length is None or args.sam_rho == 0 else AUTO_SHARE * step_length
    if schedule == "linear":
        return low + (rho - low) * (1 - progress_at(update, total))
    if schedule == "cosine":
        return low + (rho - low) * (1 + math.cos(math.pi * progress_at(update, total))) / 2
    if schedule == "warmup":
        return rho * min(1.0, update / max(1, updates_in(args.sam_rho_warmup_ratio, total)))
    if schedule == "lr" and optimizer is not None:
        group = optimizer.param_groups[0]
        # ReduceLROnPlateau notes no first learning rate; cyclic ones begin below their highest
        base = float(group.get("initial_lr", optimizer.defaults.get("lr", group["lr"])))
        return low + (rho - low) * (min(1.0, float(group["lr"]) / base) if base else 1.0)
    return rho

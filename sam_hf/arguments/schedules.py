"""ρ(t) and timing: which updates use the method, and with which radius. Pure functions of the arguments."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..methods import METHODS, Method

if TYPE_CHECKING:
    from .fields import SAMArguments

RHO_SCHEDULES = ("constant", "linear", "cosine", "lr", "warmup", "auto")
# The radius of the schedule "auto", as a share of the length of the optimizer's last step
AUTO_SHARE = 0.1


class UpdateKind(Enum):
    """What an update is."""

    PLAIN = "plain"  # before sam_start_ratio, or sam_method="none"
    SAM = "sam"
    BETWEEN = "between"  # plain, between two updates that use the method (sam_interval)


def method_class(args: SAMArguments) -> type[Method]:
    return METHODS[args.sam_method]


def update_kind_at(args: SAMArguments, update: int, total: int) -> UpdateKind:
    """
    Return what an update is.

    Args:
        args: The arguments of the run.
        update: Number of updates done so far, from 0.
        total: Number of updates of the whole run.
    """
    if args.sam_method == "none" or update < updates_in(args.sam_start_ratio, total):
        return UpdateKind.PLAIN
    interval = method_class(args).default_interval if args.sam_interval is None else args.sam_interval
    return UpdateKind.BETWEEN if update % interval else UpdateKind.SAM


def updates_in(share: float, total: int) -> int:
    """Return ⌈share · total⌉ for the decimal number `share`. In floating point, .07 · 100 is above 7."""
    return math.ceil(round(share * total, 9))


def progress_at(update: int, total: int) -> float:
    """Return the share of the training that is done: 0 in the first update, 1 in the last."""
    return min(1.0, update / max(1, total - 1))


def schedule_of(args: SAMArguments) -> str:
    """Return `sam_rho_schedule`. Its default is `"auto"` where that applies, without `sam_rho`, else `"constant"`."""
    if args.sam_rho_schedule is not None:
        return args.sam_rho_schedule
    return "auto" if args.sam_rho is None and args.sam_p == 2 and _suits_auto(method_class(args)) else "constant"


def _suits_auto(method: type[Method]) -> bool:
    # A share of the last step is small for methods whose ρ is not a length, and for those that follow the momentum
    return method.perturbs and method.radius_is_a_length and not method.perturbs_by_momentum


def uses_auto_radius(args: SAMArguments) -> bool:
    """Return whether the radius is a share of the length of the optimizer's last step."""
    return args.sam_method != "none" and args.sam_rho != 0 and schedule_of(args) == "auto"


def rho_of(args: SAMArguments) -> float:
    """Return ρ before any schedule: `sam_rho`, or the method's default; `0.0` for a method that has none."""
    return float(method_class(args).default_rho or 0.0) if args.sam_rho is None else args.sam_rho


def default_radius(method: type[Method]) -> str:
    """Return in words, for tables, the radius of a run without `sam_rho`."""
    if not method.perturbs:
        return "no radius"
    return f"auto; {method.default_rho} with another schedule" if _suits_auto(method) else str(method.default_rho)


def radius_at(
    args: SAMArguments, update: int, total: int, optimizer: Any = None, step_length: Tensor | None = None
) -> float | Tensor:
    """
    Return ρ for an update that uses the method: `0.0` if it is plain after all, and with `"auto"` a 0-dimensional
    tensor once there was a step.

    Args:
        args: The arguments of the run.
        update: Number of updates done so far, from 0.
        total: Number of updates of the whole run.
        optimizer: The schedule `"lr"` follows its learning rate.
        step_length: ‖w_t − w_{t−1}‖₂ of its last step, which `"auto"` follows.
    """
    if not method_class(args).perturbs:
        return 0.0
    rho = rho_of(args)
    low, schedule = args.sam_rho_min, schedule_of(args)
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
        # ReduceLROnPlateau does not store the first learning rate; cyclic schedules start below their highest one
        base = float(group.get("initial_lr", optimizer.defaults.get("lr", group["lr"])))
        return low + (rho - low) * (min(1.0, float(group["lr"]) / base) if base else 1.0)
    return rho

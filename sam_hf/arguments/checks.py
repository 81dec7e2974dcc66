"""What the `sam_*` arguments may be, alone and together. A wrong one is named with its value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ..methods import METHODS

if TYPE_CHECKING:
    from .fields import SAMArguments

BATCH_NORM_MODES = ("first", "frozen", "both")
RHO_SCHEDULES = ("constant", "linear", "cosine", "lr", "warmup", "auto")


def check_sam_arguments(args: SAMArguments) -> None:
    """
    Raise `ValueError` for the first field with a value it cannot take. Called when the arguments are made and again
    when training starts, since a hyperparameter search sets fields in between.
    """
    _check_choice("sam_method", args.sam_method, ["none", *METHODS])
    _check_choice("sam_batch_norm", args.sam_batch_norm, BATCH_NORM_MODES)
    if args.sam_rho_schedule is not None:
        _check_choice("sam_rho_schedule", args.sam_rho_schedule, RHO_SCHEDULES)
    if args.sam_rho is not None:
        _check_number("sam_rho", args.sam_rho, "a finite number >= 0", lambda rho: 0 <= rho < math.inf)
    _check_number("sam_p", args.sam_p, "a number p with 1 < p <= inf", lambda p: p > 1)
    _check_number("sam_rho_min", args.sam_rho_min, "a finite number >= 0", lambda rho: 0 <= rho < math.inf)
    _check_number("sam_rho_warmup_ratio", args.sam_rho_warmup_ratio, "a share between 0 and 1", lambda x: 0 <= x <= 1)
    _check_number("sam_start_ratio", args.sam_start_ratio, "a share between 0 and 1", lambda x: 0 <= x <= 1)
    _check_number("sam_ascent_fraction", args.sam_ascent_fraction, "a share f with 0 < f <= 1", lambda x: 0 < x <= 1)
    _check_integer("sam_ascent_steps", args.sam_ascent_steps)
    if args.sam_interval is not None:
        _check_integer("sam_interval", args.sam_interval)
    _check_targets(args.sam_target_modules)
    if args.sam_m is not None:
        _check_integer("sam_m", args.sam_m)
        _check_group_size(args)
    _check_switches(args)
    _check_integer("sharpness_examples", args.sharpness_examples)
    _check_number("sharpness_rho", args.sharpness_rho, "a finite number >= 0", lambda rho: 0 <= rho < math.inf)
    if args.sharpness_m is not None:
        _check_integer("sharpness_m", args.sharpness_m)
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if args.sharpness_every_eval and getattr(args, name, False):
            raise ValueError(
                f"{name}=True is not allowed with sharpness_every_eval: rounded weights hide curvature. Leave it out."
            )
    if args.sam_method != "none":
        _check_for_method(args, METHODS[args.sam_method])


def schedule_of(args: SAMArguments, method: Any) -> str:
    """
    `sam_rho_schedule`; where none is given, `"auto"` for a radius that nobody chose. Not for methods whose ρ is no
    length or that go along the momentum: a share of the last step is little to either.
    """
    if args.sam_rho_schedule is not None:
        return args.sam_rho_schedule
    applies = method.perturbs and method.radius_is_a_length and not method.perturbs_by_momentum and args.sam_p == 2
    return "auto" if applies and args.sam_rho is None else "constant"


def _check_auto(args: SAMArguments, method: Any) -> None:
    asked = (
        'sam_rho_schedule="auto", the default without sam_rho, makes the radius a share of the length of the '
        "optimizer's last step"
    )
    if args.sam_rho not in (None, 0):
        raise ValueError(f"sam_rho={args.sam_rho!r} is not allowed: {asked}. Leave sam_rho out, or the schedule.")
    if args.sam_rho_min != 0:
        raise ValueError(f"sam_rho_min={args.sam_rho_min!r} is not allowed: {asked}. Leave it out.")
    if args.sam_p != 2:
        raise ValueError(f"sam_p={args.sam_p!r} is not allowed: {asked}, which is a 2-norm. Leave it out.")
    if not method.radius_is_a_length:
        raise ValueError(
            f"sam_rho_schedule='auto' is not allowed with sam_method={method.name!r}: {asked}, and this method's rho "
            "is not the length of the perturbation."
        )


def _check_switches(args: SAMArguments) -> None:
    switches = [f.name for f in fields(args) if isinstance(f.default, bool)]
    for name in (name for name in switches if name.startswith(("sam_", "sharpness_"))):
        if not isinstance(getattr(args, name), bool):
            raise ValueError(f"{name}={getattr(args, name)!r} is not allowed: it must be true or false.")


def _check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(allowed)}.")


def _check_number(name: str, value: Any, allowed: str, accepts: Callable[[Any], bool]) -> None:
    # `not accepts(...)` rather than the opposite comparison: NaN fails every comparison
    if isinstance(value, bool) or not isinstance(value, Real) or not accepts(value):
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} is not allowed: it must be an integer >= 1.")


def _check_group_size(args: SAMArguments) -> None:
    micro_batch = getattr(args, "per_device_train_batch_size", None)
    if micro_batch is None:  # SAMArguments on its own knows no batch
        return
    window = micro_batch * args.gradient_accumulation_steps  # type: ignore[attr-defined]
    fits = args.sam_m <= window and (args.sam_m % micro_batch == 0 or micro_batch % args.sam_m == 0)
    if not fits:
        raise ValueError(
            f"sam_m={args.sam_m} is not allowed: it must divide per_device_train_batch_size={micro_batch} or be a "
            f"multiple of it, and be at most the {window} examples of one update on the device."
        )


def _check_targets(targets: Any) -> None:
    allowed = "all, norm, no_norm, a regular expression, or a list of module-name suffixes"
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(
                f"sam_target_modules={targets!r} is not allowed: it must be {allowed} ({error})."
            ) from error
    elif not isinstance(targets, (list, tuple)) or not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError(f"sam_target_modules={targets!r} is not allowed: it must be {allowed}.")


def _check_for_method(args: SAMArguments, method: Any) -> None:
    """Fields that have no meaning for the method, and the method's own parameters."""
    for item in fields(args):
        reason = method.refuses.get(item.name)
        if reason is not None and getattr(args, item.name) != item.default:
            raise ValueError(
                f"{item.name}={getattr(args, item.name)!r} is not allowed with sam_method={method.name!r}: {reason}. "
                "Leave it out."
            )
    if schedule_of(args, method) == "auto":
        _check_auto(args, method)
    rho = method.default_rho if args.sam_rho is None else args.sam_rho
    if method.perturbs and args.sam_rho != 0 and args.sam_rho_min > rho:
        raise ValueError(f"sam_rho_min={args.sam_rho_min!r} is not allowed: it must be at most sam_rho={rho!r}.")
    options = {} if args.sam_method_kwargs is None else args.sam_method_kwargs
    if not isinstance(options, dict):
        raise ValueError(f"sam_method_kwargs={options!r} is not allowed: it must be a dict, or JSON of one.")
    for name, value in options.items():
        option = method.options.get(name)
        if option is None:
            allowed = ", ".join(method.options) or "nothing"
            raise ValueError(f"sam_method_kwargs has {name!r}: sam_method={method.name!r} takes {allowed}.")
        kind = bool if isinstance(option.default, bool) else str if isinstance(option.default, str) else Real
        fits = isinstance(value, kind)
        if kind is Real:
            fits = fits and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not option.accepts(value):
            raise ValueError(
                f"sam_method_kwargs has {name}={value!r}, which is not allowed: it must be {option.allowed}."
            )

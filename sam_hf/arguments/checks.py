"""Which values the `sam_*` arguments may have, alone and together. Errors name the value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ..methods import METHODS, Method
from .schedules import RHO_SCHEDULES, rho_of, schedule_of

if TYPE_CHECKING:
    from .fields import SAMArguments

BATCH_NORM_MODES = ("first", "frozen", "both")

_NOT_NEGATIVE = ("a finite number >= 0", lambda x: 0 <= x < math.inf)
_SHARE = ("a share between 0 and 1", lambda x: 0 <= x <= 1)
_POSITIVE_INTEGER = ("an integer >= 1", lambda x: isinstance(x, Integral) and int(x) >= 1)
# Field -> what is allowed, in words and as a function. NaN fails every comparison
_NUMBERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sam_rho": _NOT_NEGATIVE,
    "sam_p": ("a number p with 1 < p <= inf", lambda p: p > 1),
    "sam_rho_min": _NOT_NEGATIVE,
    "sam_rho_warmup_ratio": _SHARE,
    "sam_start_ratio": _SHARE,
    "sam_ascent_fraction": ("a share f with 0 < f <= 1", lambda x: 0 < x <= 1),
    "sam_ascent_steps": _POSITIVE_INTEGER,
    "sam_interval": _POSITIVE_INTEGER,
    "sam_m": _POSITIVE_INTEGER,
    "sharpness_examples": _POSITIVE_INTEGER,
    "sharpness_rho": _NOT_NEGATIVE,
    "sharpness_m": _POSITIVE_INTEGER,
}
_OPTIONAL = ("sam_rho", "sam_interval", "sam_m", "sharpness_m")
_SWITCHES = ("sam_sync_perturbation", "sam_replay_rng", "sam_stochastic_rounding", "sharpness_every_eval")


def check_sam_arguments(args: SAMArguments) -> None:
    """
    Check all fields. Called when the arguments are made and again when training starts, since a hyperparameter search
    sets fields in between.

    Raises:
        ValueError: A field has a value that is not allowed.
    """
    _check_choice("sam_method", args.sam_method, ["none", *METHODS])
    _check_choice("sam_batch_norm", args.sam_batch_norm, BATCH_NORM_MODES)
    if args.sam_rho_schedule is not None:
        _check_choice("sam_rho_schedule", args.sam_rho_schedule, RHO_SCHEDULES)
    for name, (allowed, accepts) in _NUMBERS.items():
        value = getattr(args, name)
        if value is not None or name not in _OPTIONAL:
            _check(name, value, allowed, _is_number(value) and accepts(value))
    for name in _SWITCHES:
        _check(name, getattr(args, name), "true or false", isinstance(getattr(args, name), bool))
    _check_targets(args.sam_target_modules)
    if args.sam_m is not None:
        _check_group_size(args)
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if args.sharpness_every_eval and getattr(args, name, False):
            raise ValueError(
                f"{name}=True is not allowed with sharpness_every_eval: rounded weights hide curvature. Leave it out."
            )
    if args.sam_method != "none":
        _check_for_method(args, METHODS[args.sam_method])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check(name: str, value: Any, allowed: str, is_allowed: bool) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    _check(name, value, f"one of {', '.join(choices)}", value in choices)


def _check_group_size(args: SAMArguments) -> None:
    micro_batch = getattr(args, "per_device_train_batch_size", None)
    if micro_batch is None:  # SAMArguments without TrainingArguments has no batch size
        return
    window = micro_batch * args.gradient_accumulation_steps  # type: ignore[attr-defined]
    if args.sam_m > window or (args.sam_m % micro_batch != 0 and micro_batch % args.sam_m != 0):
        raise ValueError(
            f"sam_m={args.sam_m} is not allowed: it must divide per_device_train_batch_size={micro_batch} or be a "
            f"multiple of it, and be at most the {window} examples of one update on the device."
        )


def _check_targets(targets: Any) -> None:
    allowed = "all, norm, no_norm, a regular expression, or a list of module-name suffixes"
    if not isinstance(targets, str):
        names = targets if isinstance(targets, (list, tuple)) else ()
        _check("sam_target_modules", targets, allowed, bool(names) and all(isinstance(name, str) for name in names))
        return
    try:
        re.compile(targets)
    except re.error as error:
        raise ValueError(f"sam_target_modules={targets!r} is not allowed: it must be {allowed} ({error}).") from error


def _check_for_method(args: SAMArguments, method: type[Method]) -> None:
    for item in fields(args):
        reason = method.refuses.get(item.name)
        if reason is not None and getattr(args, item.name) != item.default:
            raise ValueError(
                f"{item.name}={getattr(args, item.name)!r} is not allowed with sam_method={method.name!r}: {reason}. "
                "Leave it out."
            )
    if schedule_of(args) == "auto":
        _check_auto(args, method)
    if method.perturbs and args.sam_rho != 0 and args.sam_rho_min > rho_of(args):
        raise ValueError(
            f"sam_rho_min={args.sam_rho_min!r} is not allowed: it must be at most sam_rho={rho_of(args)!r}."
        )
    _check_method_options({} if args.sam_method_kwargs is None else args.sam_method_kwargs, method)


def _check_auto(args: SAMArguments, method: type[Method]) -> None:
    auto = (
        'sam_rho_schedule="auto", the default without sam_rho, makes the radius a share of the length of the '
        "optimizer's last step"
    )
    if args.sam_rho not in (None, 0):
        raise ValueError(f"sam_rho={args.sam_rho!r} is not allowed: {auto}. Leave out sam_rho or the schedule.")
    if args.sam_rho_min != 0:
        raise ValueError(f"sam_rho_min={args.sam_rho_min!r} is not allowed: {auto}. Leave it out.")
    if args.sam_p != 2:
        raise ValueError(f"sam_p={args.sam_p!r} is not allowed: {auto}, which is a 2-norm. Leave it out.")
    if not method.radius_is_a_length:
        raise ValueError(
            f"sam_rho_schedule='auto' is not allowed with sam_method={method.name!r}: {auto}, but rho of this method "
            "is not the length of the perturbation."
        )


def _check_method_options(options: Any, method: type[Method]) -> None:
    if not isinstance(options, dict):
        raise ValueError(f"sam_method_kwargs={options!r} is not allowed: it must be a dict, or a dict in JSON.")
    for name, value in options.items():
        option = method.options.get(name)
        if option is None:
            names = ", ".join(method.options) or "none"
            raise ValueError(
                f"sam_method_kwargs has {name!r}, which is not a parameter of sam_method={method.name!r}. Its "
                f"parameters: {names}."
            )
        if isinstance(option.default, (bool, str)):
            fits = isinstance(value, type(option.default))
        else:
            fits = _is_number(value) and math.isfinite(value)
        if not fits or not option.accepts(value):
            raise ValueError(f"sam_method_kwargs has {name}={value!r}, but {name} must be {option.allowed}.")

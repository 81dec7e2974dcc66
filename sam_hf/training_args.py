"""`SAMArguments`: the one definition of every `sam_*` field, with its checks, and the classes that carry it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .methods import METHODS, Method

BATCH_NORM_MODES = ("first", "frozen", "both")


@dataclass
class SAMArguments:
    r"""
    The arguments of Sharpness-Aware Minimization. A mixin: `class MyArguments(SAMArguments, SFTConfig)` gives any
    [`~transformers.TrainingArguments`] subclass these fields. They are read when training runs, so they can be changed
    after the trainer is built, by a hyperparameter search for example.

    Args:
        sam_method (`str`, *optional*, defaults to `"sam"`):
            What each update does: `"none"` is plain training, `"sam"` is SAM (arXiv 2010.01412).
        sam_rho (`float`, *optional*):
            Radius ρ ≥ 0 of the ball in which the loss is maximised, in the units of the weights. `None` takes the
            method's published default (0.05 for `"sam"`); short finetuning usually wants 0.003 to 0.02. `0` is plain
            training, bit for bit and at its cost.
        sam_p (`float`, *optional*, defaults to `2.0`):
            Order p of the perturbation's norm, 1 < p ≤ inf (section 2, equation 2).
        sam_ascent_steps (`int`, *optional*, defaults to `1`):
            Inner ascent steps k, each of radius ρ/k. An update takes k + 1 passes.
        sam_m (`int`, *optional*):
            m-sharpness: how many examples of a device share one perturbation. A divisor or a multiple of
            `per_device_train_batch_size`, at most the examples of one update; `None` is all of them, which makes
            gradient accumulation exact: 4×8 is one batch of 32.
        sam_sync_perturbation (`bool`, *optional*, defaults to `False`):
            Average the ascent gradient over replicas (DDP). By default each replica perturbs by its own gradient, as
            in the paper. FSDP always averages.
        sam_replay_rng (`bool`, *optional*, defaults to `True`):
            Every pass over the same examples sees the same random numbers, dropout masks above all.
        sam_batch_norm (`str`, *optional*, defaults to `"first"`):
            Running statistics of BatchNorm follow the `"first"` pass only, follow `"both"` (every) passes, or are
            `"frozen"`: never updated, and used for normalisation as in evaluation.
        sam_stochastic_rounding (`bool`, *optional*, defaults to `False`):
            Round w + ε stochastically where the weights themselves are bf16 or fp16, so that an ε below their
            resolution acts in expectation.

    Raises:
        ValueError: a field has a value that it cannot take; the message names field, value and what is allowed.
    """

    sam_method: str = field(
        default="sam",
        metadata={"help": "Training method; none is plain training.", "choices": ["none", *METHODS]},
    )
    sam_rho: float | None = field(
        default=None,
        metadata={
            "help": "Radius rho >= 0 of the perturbation. Default: the method's own (sam 0.05). Short finetuning "
            "usually wants 0.003 to 0.02; 0 is plain training."
        },
    )
    sam_p: float = field(default=2.0, metadata={"help": "Order p of the perturbation's norm, 1 < p <= inf."})
    sam_ascent_steps: int = field(
        default=1, metadata={"help": "Inner ascent steps k, each of radius rho/k. An update takes k + 1 passes."}
    )
    sam_m: int | None = field(
        default=None,
        metadata={
            "help": "Examples per device that share one perturbation (m-sharpness): a divisor or multiple of "
            "per_device_train_batch_size. Default: all of the update's."
        },
    )
    sam_sync_perturbation: bool = field(
        default=False,
        metadata={"help": "Average the ascent gradient over replicas (DDP). FSDP always does."},
    )
    sam_replay_rng: bool = field(
        default=True, metadata={"help": "Same random numbers (dropout masks) in every pass over the same examples."}
    )
    sam_batch_norm: str = field(
        default="first",
        metadata={
            "help": "BatchNorm running statistics follow the first pass, both (every) passes, or are frozen.",
            "choices": list(BATCH_NORM_MODES),
        },
    )
    sam_stochastic_rounding: bool = field(
        default=False, metadata={"help": "Round w+epsilon stochastically where the weights are bf16 or fp16."}
    )

    def __post_init__(self):
        check_sam_arguments(self)
        # A hyperparameter search casts its values to the type of the field's present one: 0.1 to 0 where that is 0
        self.sam_p = float(self.sam_p)
        if self.sam_rho is not None:
            self.sam_rho = float(self.sam_rho)
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:  # SAMArguments may also stand alone
            parent()


@dataclass
class SAMTrainingArguments(SAMArguments, TrainingArguments):
    __doc__ = f"""[`~transformers.TrainingArguments`] with the arguments of SAM.\n{SAMArguments.__doc__}"""


@dataclass
class SAMSeq2SeqTrainingArguments(SAMArguments, Seq2SeqTrainingArguments):
    __doc__ = f"""[`~transformers.Seq2SeqTrainingArguments`] with the arguments of SAM.\n{SAMArguments.__doc__}"""


def sam_arguments(args: Any) -> Any:
    """The object that holds the `sam_*` fields for `args`: itself, or the defaults for plain `TrainingArguments`."""
    return args if isinstance(args, SAMArguments) else SAMArguments()


def method_class(args: SAMArguments) -> type[Method]:
    return METHODS[args.sam_method]


def check_sam_arguments(args: SAMArguments) -> None:
    """
    Raise `ValueError` for the first field with a value it cannot take. Called when the arguments are made and again
    when training starts, since a hyperparameter search sets fields in between.
    """
    _check_choice("sam_method", args.sam_method, ["none", *METHODS])
    _check_choice("sam_batch_norm", args.sam_batch_norm, BATCH_NORM_MODES)
    if args.sam_rho is not None:
        _check_number("sam_rho", args.sam_rho, "a finite number >= 0", lambda rho: 0 <= rho < math.inf)
    _check_number("sam_p", args.sam_p, "a number p with 1 < p <= inf", lambda p: p > 1)
    _check_integer("sam_ascent_steps", args.sam_ascent_steps)
    if args.sam_m is not None:
        _check_integer("sam_m", args.sam_m)
        _check_group_size(args)
    for name in (f.name for f in fields(SAMArguments) if isinstance(f.default, bool)):
        if not isinstance(getattr(args, name), bool):
            raise ValueError(f"{name}={getattr(args, name)!r} is not allowed: it must be true or false.")


def _check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(allowed)}.")


def _check_number(name: str, value: Any, allowed: str, accepts) -> None:
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

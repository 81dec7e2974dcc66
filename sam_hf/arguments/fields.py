"""`SAMArguments`: the one definition of every `sam_*` field, with its checks, and the classes that carry it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..methods import METHODS, Method
from .checks import BATCH_NORM_MODES, RHO_SCHEDULES, check_sam_arguments


@dataclass
class SAMArguments:
    r"""
    The arguments of Sharpness-Aware Minimization. A mixin: `class MyArguments(SAMArguments, SFTConfig)` gives any
    [`~transformers.TrainingArguments`] subclass these fields. They are read when training runs, so they can be changed
    after the trainer is built, by a hyperparameter search for example.

    Args:
        sam_method (`str`, *optional*, defaults to `"sam"`):
            What each update does: `"none"` is plain training, `"sam"` is SAM (arXiv 2010.01412); the others are
            variants of it: `"asam"`, `"gsam"`, `"wsam"`, `"fsam"`, `"vasso"`, `"looksam"`, `"msam"`, and for LoRA
            adapters `"nbar"`.
        sam_rho (`float`, *optional*):
            Radius ρ ≥ 0 of the ball in which the loss is maximised, in the units of the weights; short finetuning
            usually wants 0.003 to 0.02. `None` leaves it to the schedule `"auto"`, or beside another schedule, with
            `sam_p`, and for `"asam"` and `"msam"` takes the method's published default (0.05 for `"sam"`, 0.5 for
            `"asam"`). `0` is plain training, bit for bit and at its cost.
        sam_rho_schedule (`str`, *optional*):
            How ρ changes over training: `"constant"`; `"linear"` and `"cosine"` fall from ρ to `sam_rho_min`;
            `"lr"` follows the learning rate between the two; `"warmup"` rises from 0 to ρ. `"auto"` needs no ρ: it is
            a tenth of the length of the optimizer's last step, ‖w_t − w_{t−1}‖₂, and the first update is plain. It
            takes no `sam_rho` (but 0), `sam_rho_min` or `sam_p`. `None` is `"constant"` with a `sam_rho`, and
            `"auto"` without where it applies (see `sam_rho`).
        sam_rho_min (`float`, *optional*, defaults to `0.0`):
            Where the schedules `"linear"`, `"cosine"` and `"lr"` end, at most ρ.
        sam_rho_warmup_ratio (`float`, *optional*, defaults to `0.1`):
            Share of training over which the schedule `"warmup"` rises.
        sam_p (`float`, *optional*, defaults to `2.0`):
            Order p of the perturbation's norm, 1 < p ≤ inf (section 2, equation 2).
        sam_ascent_steps (`int`, *optional*, defaults to `1`):
            Inner ascent steps k, each of radius ρ/k. An update takes k + 1 passes.
        sam_m (`int`, *optional*):
            m-sharpness: how many examples of a device share one perturbation. A divisor or a multiple of
            `per_device_train_batch_size`, at most the examples of one update; `None` is all of them, which makes
            gradient accumulation exact: 4×8 is one batch of 32.
        sam_ascent_fraction (`float`, *optional*, defaults to `1.0`):
            Share f of the examples (of a group's first ones, see `sam_m`) that the ascent gradient is computed on,
            0 < f <= 1. An update takes about 1 + f passes, and `loss` is that of these examples.
        sam_interval (`int`, *optional*):
            The method on every k-th update, plain ones between. `None` is 1, and 5 for `"looksam"`.
        sam_start_ratio (`float`, *optional*, defaults to `0.0`):
            Share of training that is plain before the method starts, 0 to 1.
        sam_target_modules (`str` or `list[str]`, *optional*, defaults to `"all"`):
            What is perturbed: `"all"`; `"norm"`, the normalisation layers alone, or `"no_norm"`, all but them (by the
            modules' types); a regular expression that module names match as a whole; or a list of suffixes of module
            names. The rest is trained with the same gradient, and costs no ascent gradient.
        sam_method_kwargs (`dict` or `str`, *optional*):
            The method's own parameters, as a dict or JSON: `{"eta": 0.01}` for `"asam"`.
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
        sharpness_every_eval (`bool`, *optional*, defaults to `False`):
            Add the sharpness of the training loss to each evaluation's metrics: see [`SharpnessCallback`], also for
            what it costs. The fields below are its arguments.
        sharpness_examples (`int`, *optional*, defaults to `32`):
            On how many of the training examples, over all processes.
        sharpness_rho (`float`, *optional*, defaults to `0.05`):
            Radius ρ of the measured m-sharpness, whatever `sam_rho` is.
        sharpness_m (`int`, *optional*):
            Examples that share an ε there. `None` is the evaluation's batch on a device.

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
            "help": "Radius rho >= 0 of the perturbation; short finetuning usually wants 0.003 to 0.02, and 0 is "
            "plain training. Default: left to sam_rho_schedule auto, or the published one where that does not apply."
        },
    )
    sam_rho_schedule: str | None = field(
        default=None,
        metadata={
            "help": "How rho changes over training; auto follows the optimizer's steps and needs no rho. Default: "
            "constant with a sam_rho, auto without.",
            "choices": list(RHO_SCHEDULES),
        },
    )
    sam_rho_min: float = field(
        default=0.0, metadata={"help": "Where the rho schedules linear, cosine and lr end; at most rho."}
    )
    sam_rho_warmup_ratio: float = field(
        default=0.1, metadata={"help": "Share of training over which the rho schedule warmup rises from 0."}
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
    sam_ascent_fraction: float = field(
        default=1.0, metadata={"help": "Share of the examples that the ascent gradient is computed on."}
    )
    sam_interval: int | None = field(
        default=None, metadata={"help": "The method on every k-th update only. Default: 1; looksam 5."}
    )
    sam_start_ratio: float = field(
        default=0.0, metadata={"help": "Share of training that is plain before the method starts."}
    )
    sam_target_modules: list[str] | str | None = field(  # in the order by which HfArgumentParser takes it for a string
        default="all",
        metadata={
            "help": "What is perturbed: all, norm, no_norm, a regular expression for module names, or their suffixes "
            "(two or more, or a list in JSON)."
        },
    )
    sam_method_kwargs: dict | str | None = field(
        default=None, metadata={"help": "The method's own parameters, as JSON."}
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

    # Measurement alone: training is the same with and without
    sharpness_every_eval: bool = field(
        default=False,
        metadata={"help": "Add the Hessian's largest eigenvalue and m-sharpness to each evaluation's metrics."},
    )
    sharpness_examples: int = field(
        default=32, metadata={"help": "Training examples that sharpness_every_eval measures on."}
    )
    sharpness_rho: float = field(default=0.05, metadata={"help": "Radius rho of the measured m-sharpness."})
    sharpness_m: int | None = field(
        default=None,
        metadata={"help": "Examples that share an epsilon in the measured m-sharpness. Default: an evaluation batch."},
    )

    def __post_init__(self):
        if self.sam_target_modules is None:
            self.sam_target_modules = "all"
        # A list of names, and not a regular expression that starts with a set of characters
        if isinstance(self.sam_target_modules, str) and re.match(r'\[\s*"', self.sam_target_modules):
            self.sam_target_modules = _json("sam_target_modules", self.sam_target_modules)
        if isinstance(self.sam_method_kwargs, str):
            self.sam_method_kwargs = _json("sam_method_kwargs", self.sam_method_kwargs)
        check_sam_arguments(self)
        # A hyperparameter search casts its values to the type of the field's present one: 0.1 to 0 where that is 0
        for name in (
            "sam_p",
            "sam_rho_min",
            "sam_rho_warmup_ratio",
            "sam_ascent_fraction",
            "sam_start_ratio",
            "sharpness_rho",
        ):
            setattr(self, name, float(getattr(self, name)))
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


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} is not allowed: it is no JSON ({error}).") from error

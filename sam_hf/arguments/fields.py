"""`SAMArguments`, the only definition of the `sam_*` fields, and the classes that have these fields."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..methods import METHODS
from .checks import BATCH_NORM_MODES, check_sam_arguments
from .schedules import RHO_SCHEDULES


@dataclass
class SAMArguments:
    r"""
    The arguments of Sharpness-Aware Minimization, as a mixin: `class MyArguments(SAMArguments, SFTConfig)` adds these
    fields to any subclass of `TrainingArguments`. They are read when training runs, so they can be changed after the
    trainer is built, for example by a hyperparameter search.

    Args:
        sam_method:
            Training method. `"none"` is plain training and `"sam"` is SAM (arXiv 2010.01412). The others are variants
            of it: `"asam"`, `"gsam"`, `"wsam"`, `"fsam"`, `"vasso"`, `"looksam"`, `"msam"`, and `"nbar"` for LoRA
            adapters only.
        sam_rho:
            Radius rho >= 0 of the ball in which the loss is maximised, in the units of the weights. Short finetuning
            usually needs 0.003 to 0.02. `0` is plain training. Default: `sam_rho_schedule="auto"` chooses the radius;
            where that does not apply, the published rho of the method.

            `0` is plain training bit for bit, and costs the same. The published default (0.05 for `"sam"`, 0.5 for
            `"asam"`) is used with another schedule, with `sam_p`, and for `"asam"` and `"msam"`.
        sam_rho_schedule:
            How rho changes over training. `"constant"`; `"linear"` and `"cosine"` decrease from rho to `sam_rho_min`;
            `"lr"` follows the learning rate between the two; `"warmup"` increases from 0 to rho; `"auto"` needs no
            rho and follows the length of the optimizer's steps. Default: `"constant"` with a `sam_rho`, `"auto"`
            without.

            `"auto"` is a tenth of the length of the optimizer's last step, ‖w_t − w_{t−1}‖₂, and the first update is
            plain. It cannot be combined with a `sam_rho` other than 0, with `sam_rho_min` or with `sam_p`. Where it
            does not apply (see `sam_rho`), the default is `"constant"`.
        sam_rho_min:
            Smallest rho of the schedules `"linear"`, `"cosine"` and `"lr"`, at most rho.
        sam_rho_warmup_ratio:
            Share of training over which the schedule `"warmup"` increases rho.
        sam_p:
            Order p of the perturbation's norm, 1 < p <= inf.

            See section 2 and equation 2 of the paper.
        sam_ascent_steps:
            Number k of inner ascent steps, each of radius rho/k. An update takes k + 1 passes.
        sam_m:
            Examples per device that share one perturbation (m-sharpness): a divisor or a multiple of
            `per_device_train_batch_size`, and at most the examples of one update. Default: all examples of the update.

            The default makes gradient accumulation exact: 4×8 is one batch of 32.
        sam_ascent_fraction:
            Share f of the examples that the ascent gradient is computed on, 0 < f <= 1. An update takes about 1 + f
            passes.

            The first examples of each group are used (see `sam_m`), and the logged `loss` is the loss of these
            examples.
        sam_interval:
            Use the method on every k-th update only; the updates between them are plain. Default: 1, and 5 for
            `"looksam"`.
        sam_start_ratio:
            Share of training that is plain before the method starts, 0 to 1.
        sam_target_modules:
            What is perturbed: `"all"`; `"norm"`, only the normalisation layers; `"no_norm"`, all other layers; a
            regular expression for module names; or a list of suffixes of module names (two or more words, or a list in
            JSON).

            Normalisation layers are found by the types of the modules. A regular expression must match the whole name
            of a module. The other parameters are trained with the same gradient, and need no ascent gradient.
        sam_method_kwargs:
            The method's own parameters, as a dict or in JSON: `{"eta": 0.01}` for `"asam"`.
        sam_sync_perturbation:
            Average the ascent gradient over replicas (DDP). FSDP always does.

            By default, each replica perturbs by its own gradient, as in the paper.
        sam_replay_rng:
            Use the same random numbers, mainly dropout masks, in every pass over the same examples.
        sam_batch_norm:
            Which passes update the running statistics of BatchNorm: the `"first"` pass over each example, `"both"`
            (every pass), or none (`"frozen"`).

            With `"frozen"`, the running statistics are also used for normalisation, as in evaluation.
        sam_stochastic_rounding:
            Round w + epsilon stochastically if the weights themselves are bf16 or fp16. An epsilon below their
            resolution then has its effect on average.
        sharpness_every_eval:
            Add the sharpness of the training loss to the metrics of each evaluation: the largest eigenvalue of the
            Hessian, and the m-sharpness. The `sharpness_*` arguments below belong to it.

            `SharpnessCallback` explains what is measured and what it costs.
        sharpness_examples:
            Number of training examples to measure on, over all processes.
        sharpness_rho:
            Radius rho of the measured m-sharpness. It does not depend on `sam_rho`.
        sharpness_m:
            Examples that share an epsilon in the measured m-sharpness. Default: the evaluation batch of a device.

    Raises:
        ValueError: A field has a value that is not allowed. The message names the field, the value and what is
            allowed.
    """

    sam_method: str = field(default="sam", metadata={"choices": ["none", *METHODS]})
    sam_rho: float | None = None
    sam_rho_schedule: str | None = field(default=None, metadata={"choices": list(RHO_SCHEDULES)})
    sam_rho_min: float = 0.0
    sam_rho_warmup_ratio: float = 0.1
    sam_p: float = 2.0
    sam_ascent_steps: int = 1
    sam_m: int | None = None
    sam_ascent_fraction: float = 1.0
    sam_interval: int | None = None
    sam_start_ratio: float = 0.0
    sam_target_modules: list[str] | str | None = "all"  # in this order, HfArgumentParser reads it as a string
    sam_method_kwargs: dict | str | None = None
    sam_sync_perturbation: bool = False
    sam_replay_rng: bool = True
    sam_batch_norm: str = field(default="first", metadata={"choices": list(BATCH_NORM_MODES)})
    sam_stochastic_rounding: bool = False

    # These only measure. Training is the same with and without them
    sharpness_every_eval: bool = False
    sharpness_examples: int = 32
    sharpness_rho: float = 0.05
    sharpness_m: int | None = None

    def __post_init__(self):
        if self.sam_target_modules is None:
            self.sam_target_modules = "all"
        # '["a", "b"]' is a list of names, and not a regular expression that starts with a set of characters
        if isinstance(self.sam_target_modules, str) and re.match(r'\[\s*"', self.sam_target_modules):
            self.sam_target_modules = _json("sam_target_modules", self.sam_target_modules)
        if isinstance(self.sam_method_kwargs, str):
            self.sam_method_kwargs = _json("sam_method_kwargs", self.sam_method_kwargs)
        check_sam_arguments(self)
        # A hyperparameter search casts its values to the type of the field's present value: 0.1 to 0 if that is the
        # integer 0
        for name, annotation in SAMArguments.__annotations__.items():
            if annotation.startswith("float") and getattr(self, name) is not None:
                setattr(self, name, float(getattr(self, name)))
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:  # without TrainingArguments there is none
            parent()


def argument_descriptions() -> dict[str, str]:
    """Return what the docstring of `SAMArguments` says about each field."""
    text = (inspect.getdoc(SAMArguments) or "").partition("\nArgs:\n")[2].partition("\nRaises:\n")[0]
    _, *entries = re.split(r"^    (\w+):\n", text, flags=re.MULTILINE)
    return {name: inspect.cleandoc(entry) for name, entry in zip(entries[::2], entries[1::2], strict=True)}


# The first paragraph of a description is the help text on the command line
for _name, _description in argument_descriptions().items():
    _field = SAMArguments.__dataclass_fields__[_name]
    _help = " ".join(_description.partition("\n\n")[0].replace("`", "").split())
    _field.metadata = MappingProxyType({"help": _help, **_field.metadata})


@dataclass
class SAMTrainingArguments(SAMArguments, TrainingArguments):
    """`TrainingArguments` of transformers with the fields of [`SAMArguments`]."""


@dataclass
class SAMSeq2SeqTrainingArguments(SAMArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` of transformers with the fields of [`SAMArguments`]."""


def sam_arguments(args: Any) -> Any:
    """Return the object that has the `sam_*` fields: `args`, or the defaults for plain `TrainingArguments`."""
    return args if isinstance(args, SAMArguments) else SAMArguments()


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} is not allowed: it is not valid JSON ({error}).") from error

"""
The parser of dataclasses: its help fits a person (this package's options and the common ones of Trainer, in titled
groups), and it takes lists where `HfArgumentParser` takes one word of them.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from ..arguments.fields import SAMArguments
from ..errors import UsageError
from ..inputs.options import ModelArguments

# What people set in finetuning runs, of the hundred and more that TrainingArguments has
_COMMON = (
    "output_dir do_train do_eval do_predict num_train_epochs max_steps per_device_train_batch_size "
    "per_device_eval_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_grad_norm optim label_smoothing_factor bf16 fp16 gradient_checkpointing eval_strategy "
    "eval_steps eval_on_start save_strategy save_steps save_total_limit load_best_model_at_end "
    "metric_for_best_model logging_steps report_to resume_from_checkpoint seed data_seed dataloader_num_workers "
    "push_to_hub hub_model_id hub_private_repo "
).split()


class WordOrList(argparse.Action):
    """Of an option that is a `str | list[str]`: one word is that word; several are a list, and so is one in JSON."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values if len(values) > 1 else _decoded(values[0]))


def _decoded(word: str) -> str | list[str]:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else word


class Parser(HfArgumentParser):
    """[`~transformers.HfArgumentParser`] with `--config`, a readable help and errors as `UsageError`."""

    def __init__(self, dataclass_types: Sequence[Any], **kwargs):
        self._words_or_lists = {
            f"--{name}"
            for kind in dataclass_types
            for name, hint in get_type_hints(kind).items()
            if {str, list[str]} <= set(get_args(hint))
        }
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self.add_argument("--config", metavar="FILE", help="YAML file of options; options given beside it win.")
        self.add_argument("--help_all", action="store_true", help="Show every option of TrainingArguments too.")

    def add_argument(self, *names, **kwargs):
        if names[0] in self._words_or_lists:
            kwargs |= {"action": WordOrList, "nargs": "+"}
        return super().add_argument(*names, **kwargs)

    def error(self, message):
        raise UsageError(message)

    def format_help(self, everything: bool = False) -> str:
        sam = {f.name for f in fields(SAMArguments)}
        model = {f.name for f in fields(ModelArguments)}
        # Programs other than finetuning group their options themselves
        own = {f.name: c.help_title for c in self.dataclass_types if hasattr(c, "help_title") for f in fields(c)}
        trainer = {f.name for f in fields(TrainingArguments)}
        # What another trainer's arguments add is what that trainer is taken for: always shown
        special = {
            f.name
            for kind in self.dataclass_types
            if isinstance(kind, type) and issubclass(kind, TrainingArguments)
            for f in fields(kind)
        } - trainer
        groups: dict[str, list[argparse.Action]] = {
            "Data": [],
            "Model": [],
            "Sharpness-Aware Minimization": [],
            "Training": [],
            **{title: [] for title in own.values()},
            "Other": [],
        }
        for action in self._actions:
            name = action.dest
            if own:
                title = own.get(name, "" if name == "help_all" else "Other")
            elif name in sam:
                title = "Sharpness-Aware Minimization"
            elif name in model:
                title = "Model"
            elif name in trainer or name in special:
                title = "Training" if everything or name in special or name in _COMMON else ""
            else:
                title = "Other" if name in ("help", "help_all", "config") else "Data"
            if title and action.option_strings and not action.option_strings[0].startswith("--no_"):
                shown = copy.copy(action)
                shown.option_strings = action.option_strings[:1]  # not the same once more with hyphens
                groups[title].append(shown)
        formatter = argparse.ArgumentDefaultsHelpFormatter(self.prog, max_help_position=32, width=110)
        formatter.add_text(f"usage: {self.prog} [--config FILE] [--option value ...]")
        formatter.add_text(self.description)
        for title, actions in groups.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

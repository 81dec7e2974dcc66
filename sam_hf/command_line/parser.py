"""
The parser of dataclasses. In addition to what `HfArgumentParser` does, it takes defaults from a YAML file, it takes
lists where `HfArgumentParser` takes only one word, and its help shows a selection of the options in titled groups.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from ..arguments.fields import SAMArguments
from ..errors import UsageError
from .config import PlainParser, read_yaml

# The options that people set in finetuning runs. TrainingArguments has more than a hundred others.
_COMMON = (
    "output_dir do_train do_eval do_predict num_train_epochs max_steps per_device_train_batch_size "
    "per_device_eval_batch_size gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps "
    "weight_decay max_grad_norm optim label_smoothing_factor bf16 fp16 gradient_checkpointing eval_strategy "
    "eval_steps eval_on_start save_strategy save_steps save_total_limit load_best_model_at_end "
    "metric_for_best_model logging_steps report_to resume_from_checkpoint seed data_seed dataloader_num_workers "
    "push_to_hub hub_model_id hub_private_repo "
).split()


# Options that hold JSON or name a file of JSON. TrainingArguments takes any other word for the latter
_JSON_OR_FILE = {"fsdp_config", "accelerator_config", "deepspeed"}


class WordOrList(argparse.Action):
    """The action of an option that is a `str | list[str]`: it takes one word, several words, or a list in JSON."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values if len(values) > 1 else _decoded(values[0]))


def _is_object(hint: Any) -> bool:
    kinds = get_args(hint)
    return str in kinds and any(dict in (kind, get_origin(kind)) for kind in kinds)


def _check_object(name: str, value: str) -> None:
    """Refuse the value of an option for an object that is no JSON, or that names a file without any."""
    text, where = value, f"{name}={value}"
    if name in _JSON_OR_FILE and not value.startswith("{"):
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError as error:
        raise UsageError(f"{where} is not allowed: it is not valid JSON ({error})") from error
    if not is_object:
        raise UsageError(f'{where} is not allowed: it must be an object of JSON, such as {{"key": 1}}')


def _decoded(word: str) -> str | list[str]:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else word


class Parser(HfArgumentParser):
    """[`~transformers.HfArgumentParser`] with `--config`, a readable help, and errors as `UsageError`."""

    def __init__(self, dataclass_types: Sequence[Any], **kwargs):
        self._words_or_lists = {
            f"--{name}"
            for kind in dataclass_types
            for name, hint in get_type_hints(kind).items()
            if {str, list[str]} <= set(get_args(hint))
        }
        self._objects = {
            name for kind in dataclass_types for name, hint in get_type_hints(kind).items() if _is_object(hint)
        }
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        trains = any(issubclass(kind, TrainingArguments) for kind in dataclass_types)
        help_all = "Show every option of TrainingArguments too." if trains else argparse.SUPPRESS
        self.add_argument("--config", metavar="FILE", help="YAML file of options; the command line overrides it.")
        self.add_argument("--help_all", action="store_true", help=help_all)

    def add_argument(self, *names, **kwargs):
        if names[0] in self._words_or_lists:
            kwargs |= {"action": WordOrList, "nargs": "+"}
        return super().add_argument(*names, **kwargs)

    def error(self, message):
        raise UsageError(message)

    def parse(self, argv: Sequence[str] | None) -> tuple[Any, ...]:
        """Return one instance per dataclass; see [`parse_arguments`]."""
        config_parser = PlainParser(add_help=False, allow_abbrev=False)
        config_parser.add_argument("--config", nargs="?", const="")
        given, rest = config_parser.parse_known_args(argv)
        if given.config == "":
            raise UsageError("--config needs the name of a YAML file")
        if "--help_all" in rest:
            print(self.format_help(everything=True))
            sys.exit(0)
        defaults = {} if given.config is None else self._set_defaults_from(given.config)
        try:
            *instances, _, unknown = self.parse_args_into_dataclasses(
                rest, return_remaining_strings=True, look_for_args_file=False
            )
        except (UsageError, ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError) as error:
            # The dataclasses' messages begin with the field and its value: `sam_rho=-1.0 is not allowed: ...`
            action = defaults.get(str(error).partition("=")[0])
            from_config = action and not {word.partition("=")[0] for word in rest}.intersection(action.option_strings)
            text = str(error) or type(error).__name__
            raise UsageError(f"{given.config}: {text}" if from_config else text) from error
        if unknown:
            raise UsageError(self._unknown(unknown[0].partition("=")[0], list(self._option_string_actions)))
        return tuple(instances)

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = super().parse_known_args(args, namespace)
        for name in sorted(self._objects):
            value = getattr(namespace, name, None)
            if isinstance(value, str):
                _check_object(name, value)
        return namespace, rest

    def _set_defaults_from(self, path: str) -> dict[str, argparse.Action]:
        """Make the values of the YAML file at `path` defaults, and return the actions that they belong to."""
        actions = {
            name: action
            for name, action in self._option_string_actions.items()
            if action.nargs != 0 and name != "--config"
        }
        changed = {}
        for key, value in read_yaml(path).items():
            action = actions.get(f"--{key}")
            if action is None:
                raise UsageError(f"{path}: {self._unknown(str(key), list(actions))}")
            if value is None or (value == [] and not isinstance(action, WordOrList)):
                continue
            if isinstance(value, list) and len(value) > 1 and action.nargs in (None, "?"):
                raise UsageError(f"{path}: {key} takes one value: {json.dumps(value)} holds {len(value)}")
            try:
                default = self._converted(action, value)
            except argparse.ArgumentError as error:
                raise UsageError(f"{path}: {key}: {error.message}") from error
            action.required = False
            self.set_defaults(**{action.dest: default})
            changed[action.dest] = action
        return changed

    def _converted(self, action: argparse.Action, value: Any) -> Any:
        """Return `value` as argparse would read it from the command line. argparse does not check defaults."""
        words = [
            json.dumps(entry, default=str) if isinstance(entry, dict) else str(entry)
            for entry in (value if isinstance(value, list) else [value])
        ]
        entries = [self._get_value(action, word) for word in words]
        for entry in entries:
            self._check_value(action, entry)
        if isinstance(action, WordOrList):
            return entries if isinstance(value, list) else _decoded(entries[0])
        return entries if action.nargs == "+" else entries[0]

    @staticmethod
    def _unknown(name: str, known: Sequence[str]) -> str:
        close = get_close_matches("--" + name.lstrip("-"), known, n=1)
        return f"unknown option {name}" + (f": did you mean {close[0].lstrip('-')}?" if close else ": see --help")

    def format_help(self, everything: bool = False) -> str:
        titles = self._titles(everything)
        groups: dict[str, list[argparse.Action]] = {title: [] for title in [*titles.values(), "Other"]}
        for action in self._actions:
            title = titles.get(action.dest, "Other")
            if title and action.option_strings and not action.option_strings[0].startswith("--no_"):
                shown = copy.copy(action)
                shown.option_strings = action.option_strings[:1]  # without the second spelling, with hyphens
                groups[title].append(shown)
        formatter = argparse.ArgumentDefaultsHelpFormatter(self.prog, max_help_position=32, width=110)
        formatter.add_text(f"usage: {self.prog} [--config FILE] [--option value ...]")
        formatter.add_text(self.description)
        for title, actions in groups.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def _titles(self, everything: bool) -> dict[str, str]:
        """Return the title that each option stands under, in the order of the titles, and `""` for what is hidden."""
        sam, trainer = ({f.name for f in fields(kind)} for kind in (SAMArguments, TrainingArguments))
        titles = {}
        for kind in self.dataclass_types:
            for name in sorted((f.name for f in fields(kind)), key=lambda name: name not in sam):
                if hasattr(kind, "help_title"):
                    titles[name] = kind.help_title
                elif name in sam:
                    titles[name] = "Sharpness-Aware Minimization"
                else:
                    # The options that another trainer's arguments add are the reason to use it: always shown
                    hidden = name in trainer and name not in _COMMON and not everything
                    titles[name] = "" if hidden else "Training"
        return titles

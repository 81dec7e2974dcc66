"""Arguments from a YAML file and options, and errors of use as one line on stderr with exit status 2."""

from __future__ import annotations

import json
import sys
from argparse import Action, ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ..errors import HubError, HubRefusedError, UsageError


class PlainParser(ArgumentParser):
    """A parser of standard options, with errors as `UsageError`."""

    def error(self, message: str) -> Any:
        raise UsageError(message)


def run(main: Callable[[], Any]) -> None:
    """
    Run `main`, turning a `UsageError`, or a Hub that refuses to be pushed to before training, into one line on stderr
    and exit status 2; a failed push into one line and exit status 1.
    """
    try:
        main()
    except (UsageError, HubError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError | HubRefusedError) else 1)


def parse_arguments(dataclass_types: Sequence[type], argv: Sequence[str], description: str) -> tuple[Any, ...]:
    """
    Instances of `dataclass_types` from `argv`. `--config file.yaml` gives values that the other options override.
    """
    from .parser import Parser

    parser = Parser(dataclass_types, description=description)
    config, rest = _split_config(list(argv))
    if "--help_all" in rest:
        print(parser.format_help(everything=True))
        sys.exit(0)
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    given = (_config_options(config, known, {a.dest: a for a in parser._actions}) if config is not None else []) + rest
    try:
        *instances, unknown = parser.parse_args_into_dataclasses(
            given, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    instances = instances[: len(dataclass_types)]
    if unknown:
        raise UsageError(_unknown(unknown[0].split("=")[0], known))
    return tuple(instances)


def _split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    config, rest, position = None, [], 0
    while position < len(argv):
        word = argv[position]
        if word.startswith("--config="):
            config = word.removeprefix("--config=")
        elif word == "--config":
            position += 1
            if position == len(argv):
                raise UsageError("--config needs the name of a YAML file")
            config = argv[position]
        else:
            rest.append(word)
        position += 1
    return config, rest


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping that a configuration file holds."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the configuration {path} must hold `option: value` lines")
    return values


def _config_options(path: str, known: list[str], actions: Mapping[str, Action]) -> list[str]:
    options: list[str] = []
    for key, value in read_yaml(path).items():
        if f"--{key}" not in known or key == "config":
            raise UsageError(f"{path}: {_unknown(str(key), known)}")
        if isinstance(value, list):
            options += _list_option(path, key, value, actions[key])
        elif isinstance(value, bool) and "no" in (actions[key].choices or ()):
            options.append(f"--{key}={'yes' if value else 'no'}")  # YAML reads `eval_strategy: no` as false
        elif value is not None:
            options.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return options


def _list_option(path: str, key: str, value: list[Any], action: Action) -> list[str]:
    from .parser import WordOrList

    if isinstance(action, WordOrList):
        return [f"--{key}={json.dumps(value)}"]  # a list of one word is not that word
    if action.nargs is None and len(value) > 1:
        raise UsageError(f"{path}: {key} takes one value: {json.dumps(value)} holds {len(value)}")
    return [f"--{key}", *map(str, value)] if value else []


def _unknown(name: str, known: list[str]) -> str:
    close = get_close_matches("--" + name.lstrip("-"), known, n=1)
    return f"unknown option {name}" + (f": did you mean {close[0].lstrip('-')}?" if close else ": see --help")

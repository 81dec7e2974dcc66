"""
Print a script with which a shell completes the words of `sam-hf`: commands, options, their choices, and files.

    sam-hf completion bash > ~/.local/share/bash-completion/completions/sam-hf
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

from ..command_line import PlainParser
from ..errors import UsageError

SHELLS = ("bash", "zsh", "tcsh")
# Options of files and folders whose names do not end in `_file` or `_dir`
_FILES = {"config", "plan", "deepspeed", "fsdp_config", "accelerator_config"}
_FOLDERS = {"model", "against", "model_name_or_path", "dataset_name", "resume_from_checkpoint", "out"}


def print_script(argv: Sequence[str], commands: Mapping[str, str]) -> None:
    """
    Print the script for the shell that `argv` names.

    Args:
        commands (`Mapping[str, str]`): the names of all commands, with what each does.
    """
    shell = make_parser().parse_args(argv).shell
    try:
        import shtab
    except ImportError as error:
        raise UsageError('completion needs shtab: pip install "sam-hf[completion]"') from error
    print(shtab.complete(_whole_parser(commands), shell))


def make_parser() -> PlainParser:
    parser = PlainParser(prog="sam-hf completion", description="Print the script that lets a shell complete sam-hf.")
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return parser


def _whole_parser(commands: Mapping[str, str]) -> ArgumentParser:
    """Return all of `sam-hf` as one parser. It describes what can be typed, and runs nothing."""
    from .. import __version__

    whole = ArgumentParser(prog="sam-hf", description="Sharpness-Aware Minimization for Hugging Face's Trainer.")
    whole.add_argument("--version", action="version", version=__version__, help="Print the version.")
    subparsers = whole.add_subparsers()
    parsers = _parsers_of_commands()
    for name, summary in commands.items():
        parser = parsers.get(name, ArgumentParser())
        for action in parser._actions:  # argparse has no public way to them
            _describe(action)
        subparsers.add_parser(name, help=summary, description=summary, parents=[parser], add_help=False)
    return whole


def _parsers_of_commands() -> dict[str, ArgumentParser]:
    """Return the parsers of the commands that have options."""
    from ..command_line.parser import Parser
    from ..recipes import RECIPES, recipe_argument_types
    from . import compare
    from .sharpness.options import ARGUMENT_TYPES

    return {
        **{name: Parser(recipe_argument_types(name)) for name in RECIPES},
        "sharpness": Parser(ARGUMENT_TYPES),
        "compare": compare.make_parser(),
        "completion": make_parser(),
    }


def _describe(action: Any) -> None:
    """Tell shtab what can follow an option, and leave out the option's second spelling, with hyphens."""
    from shtab import DIRECTORY, FILE
    from transformers.hf_argparser import string_to_bool

    action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]
    if action.type is string_to_bool:
        action.choices = ("true", "false")
    elif action.dest in _FILES or action.dest.endswith("_file"):
        action.complete = FILE
    elif action.dest in _FOLDERS or action.dest.endswith("_dir"):
        action.complete = DIRECTORY

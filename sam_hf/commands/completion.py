"""
Print a script with which a shell completes the words of `sam-hf`: commands, options, their choices, and files.

    sam-hf completion bash > ~/.local/share/bash-completion/completions/sam-hf
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from ..command_line.parsing import PlainParser
from ..errors import UsageError

SHELLS = ("bash", "zsh", "tcsh")
# Options whose name does not say that it is one of a file (`train_file`) or a folder (`train_dir`)
_FILES = {"config", "plan", "deepspeed", "fsdp_config", "accelerator_config"}
_FOLDERS = {"model", "against", "model_name_or_path", "dataset_name", "resume_from_checkpoint", "out"}


def main(argv: Sequence[str] | None = None) -> None:
    shell = make_parser().parse_args(sys.argv[1:] if argv is None else argv).shell
    try:
        import shtab
    except ImportError as error:
        raise UsageError('completion needs shtab: pip install "sam-hf[completion]"') from error
    print(shtab.complete(command_line(), shell))


def make_parser() -> PlainParser:
    parser = PlainParser(prog="sam-hf completion", description="Print a shell's script that completes sam-hf.")
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")
    return parser


def command_line() -> ArgumentParser:
    """All of `sam-hf` as one parser: it tells what there is to type, and runs nothing."""
    from .. import __version__
    from .console import COMMANDS

    whole = ArgumentParser(prog="sam-hf", description="Sharpness-Aware Minimization for Hugging Face's Trainer.")
    whole.add_argument("--version", action="version", version=__version__, help="Print the version.")
    commands = whole.add_subparsers()
    with_options = _parsers()
    for name, (summary, _) in COMMANDS.items():
        parser = with_options.get(name, ArgumentParser())
        for action in parser._actions:  # argparse has no public way to its actions
            _describe(action)
        commands.add_parser(name, help=summary, description=summary, parents=[parser], add_help=False)
    return whole


def _parsers() -> dict[str, ArgumentParser]:
    """Those of the commands that take options."""
    from ..command_line.parser import Parser
    from ..recipes import RECIPES, recipe_argument_types
    from . import compare
    from .sharpness import command as sharpness

    return {
        **{name: Parser(recipe_argument_types(name)) for name in RECIPES},
        "sharpness": Parser(sharpness.argument_types()),
        "compare": compare.make_parser(),
        "completion": make_parser(),
    }


def _describe(action: Any) -> None:
    """Say what can follow the option, and leave its second spelling, with hyphens, out of the list."""
    from shtab import DIRECTORY, FILE
    from transformers.hf_argparser import string_to_bool

    action.option_strings = [name for name in action.option_strings if "-" not in name.lstrip("-")]
    if action.type is string_to_bool:
        action.choices = ("true", "false")
    elif action.dest in _FILES or action.dest.endswith("_file"):
        action.complete = FILE
    elif action.dest in _FOLDERS or action.dest.endswith("_dir"):
        action.complete = DIRECTORY

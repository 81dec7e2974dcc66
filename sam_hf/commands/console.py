"""
The command `sam-hf`: Sharpness-Aware Minimization for Hugging Face's Trainer (not Segment Anything).

    sam-hf text --config configs/demo_text.yaml       # scripts/finetune_text.py
    sam-hf sharpness --model out --dataset_name demo:rotten-tomatoes --out report
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial

from ..command_line import run
from ..errors import UsageError
from ..recipes import RECIPES, recipe_main


def recipe(name: str, argv: list[str]) -> None:
    recipe_main(name)(argv)


def sharpness(argv: list[str]) -> None:
    from .sharpness.command import main

    main(argv)


def compare(argv: list[str]) -> None:
    from .compare import main

    main(argv)


@contextmanager
def _output_may_be_cut() -> Iterator[None]:
    """Let the reader of stdout, such as `head`, close the pipe before everything is printed."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python flushes again when it exits, and prints an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@_output_may_be_cut()
def completion(argv: list[str]) -> None:
    from .completion import print_script

    print_script(argv, {name: summary for name, (summary, _) in COMMANDS.items()})


@_output_may_be_cut()
def methods(argv: list[str]) -> None:
    """Print the table of methods."""
    from ..arguments.schedules import default_radius
    from ..methods import METHODS
    from ..reports.page import Table, aligned

    _check_no_options("methods", argv)
    rows = []
    for name, method in METHODS.items():
        options = ", ".join(f"{option}={given.default}" for option, given in method.options.items())
        rows.append([name, method.cost.passes, default_radius(method), options, f"{method.summary} {method.paper}"])
    print(aligned(Table(["sam_method", "passes", "default rho", "own parameters", "what it does"], rows)))
    print("\npasses: forward and backward passes over the batch per update; plain training takes 1.")
    print("k: the value of --sam_ascent_steps.")


@_output_may_be_cut()
def env(argv: list[str]) -> None:
    """Print versions and hardware, for a bug report."""
    from ..reports.environment import OPTIONAL_PACKAGES, PACKAGES, environment

    _check_no_options("env", argv)
    for name, value in environment(PACKAGES + OPTIONAL_PACKAGES).items():
        print(f"- {name}: {'none' if value is None else value}")


# Name -> what the command does, and its program
COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    **{name: (summary, partial(recipe, name)) for name, summary in RECIPES.items()},
    "sharpness": ("Measure the sharpness of one checkpoint or of two.", sharpness),
    "compare": ("Compare methods on your own data, over seeds and label noise.", compare),
    "completion": ("Print a script that lets the shell complete what you type.", completion),
    "methods": ("Print the table of methods.", methods),
    "env": ("Print versions and hardware, for a bug report.", env),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. The exit status is 0 if it is done, 2 for wrong use (one line on stderr), 1 for other errors."""
    words = list(sys.argv[1:] if argv is None else argv)
    run(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return
    if words[0] == "--version":
        from .. import __version__

        print(f"sam-hf {__version__}")
        return
    name, *options = words
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"unknown command {name}: " + (f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}")
        )
    sys.argv[0] = f"sam-hf {name}"  # the usage line of --help shows it
    COMMANDS[name][1](options)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sam-hf COMMAND [--option value ...]",
            "",
            "Sharpness-Aware Minimization for Hugging Face's Trainer.",
            "",
            "Commands (sam-hf COMMAND --help shows the options of one):",
            *commands,
        ]
    )


def _check_no_options(name: str, argv: list[str]) -> None:
    if any(word in ("-h", "--help") for word in argv):
        print(f"usage: sam-hf {name}\n\n{COMMANDS[name][0]}")
        sys.exit(0)
    if argv:
        raise UsageError(f"sam-hf {name} takes no options: {argv[0]} was given")

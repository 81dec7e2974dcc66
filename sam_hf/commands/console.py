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

from ..command_line.parsing import run
from ..errors import UsageError
from ..recipes import RECIPES, recipe_main


def _recipe(name: str, argv: list[str]) -> None:
    recipe_main(name)(argv)


def sharpness(argv: list[str]) -> None:
    from .sharpness.command import main

    main(argv)


def compare(argv: list[str]) -> None:
    from .compare import main

    main(argv)


@contextmanager
def _to_a_reader() -> Iterator[None]:
    """What is printed may go to `head`, which closes the pipe when it has enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Else Python flushes once more at its exit, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@_to_a_reader()
def completion(argv: list[str]) -> None:
    from .completion import main

    main(argv)


@_to_a_reader()
def methods(argv: list[str]) -> None:
    """Print the table of methods."""
    from ..arguments.schedules import default_radius
    from ..methods import METHODS

    _takes_nothing("methods", argv)
    rows = [("sam_method", "passes", "default rho", "own parameters", "what it does")]
    for name, method in METHODS.items():
        own = ", ".join(f"{option}={given.default}" for option, given in method.options.items())
        rows.append((name, method.cost.passes, default_radius(method), own, f"{method.summary} {method.paper}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\npasses: forward and backward over the batch an update; plain training takes 1. k: --sam_ascent_steps.")


@_to_a_reader()
def env(argv: list[str]) -> None:
    """Print versions and hardware, for a bug report."""
    from ..reports.environment import OPTIONAL_PACKAGES, PACKAGES, environment

    _takes_nothing("env", argv)
    for name, value in environment(PACKAGES + OPTIONAL_PACKAGES).items():
        print(f"- {name}: {'none' if value is None else value}")


# Name -> what it does, and its program
COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    **{name: (summary, partial(_recipe, name)) for name, summary in RECIPES.items()},
    "sharpness": ("Measure the sharpness of a checkpoint, or of two.", sharpness),
    "compare": ("Compare methods on your own data, over seeds and label noise.", compare),
    "completion": ("Print a script with which the shell completes what you type.", completion),
    "methods": ("Print the table of methods.", methods),
    "env": ("Print versions and hardware, for a bug report.", env),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Exit status: 0 done; 2 wrong use, one line on stderr; 1 anything else."""
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
    name, *rest = words
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"unknown command {name}: " + (f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}")
        )
    sys.argv[0] = f"sam-hf {name}"  # what the usage line of --help says
    COMMANDS[name][1](rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: sam-hf COMMAND [--option value ...]",
        "",
        "Sharpness-Aware Minimization for Hugging Face's Trainer.",
    ]
    lines += ["", "Commands (sam-hf COMMAND --help for its options):"]
    lines += [f"  {name:<{width}}  {summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(lines)


def _takes_nothing(name: str, argv: list[str]) -> None:
    if any(word in ("-h", "--help") for word in argv):
        print(f"usage: sam-hf {name}\n\n{COMMANDS[name][0]}")
        sys.exit(0)
    if argv:
        raise UsageError(f"sam-hf {name} takes no options: {argv[0]} was given")

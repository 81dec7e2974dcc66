"""
What all programs of the package share: how they read their options, and how they end.

This file imports nothing heavy: a program must be able to set threads and devices before torch is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DivergedError, HubError, HubRefusedError, UsageError
from .config import PlainParser as PlainParser


def parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str] | None, description: str | None
) -> tuple[Any, ...]:
    """
    Return one instance of each of `dataclass_types`, filled from the command line and from `--config file.yaml`.

    Options of the command line override those of the file.

    Args:
        dataclass_types (`Sequence[type]`): dataclasses whose fields are the options. `--help` groups them by a class
            variable `help_title`.
        argv (`Sequence[str]`, *optional*): words of the command line; `None` takes those of the process.
        description (`str`, *optional*): what the program does, for `--help`.
    """
    from .parser import Parser

    return Parser(dataclass_types, description=description).parse(argv)


def run(main: Callable[[], Any]) -> None:
    """
    Call `main` and turn errors that users can mend into one line on stderr.

    The exit status is 2 for wrong use and for a Hub that refuses the push before training starts, and 1 for a push
    that fails and for numbers that are not finite.
    """
    try:
        main()
    except (UsageError, HubError, DivergedError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError | HubRefusedError) else 1)

"""
Writes the page of arguments from `SAMArguments`: its fields, their defaults and choices, and its docstring.

    python docs/make_arguments.py           # writes docs/arguments.md
    python docs/make_arguments.py --check   # exit status 1 where the page and the code differ
"""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from pathlib import Path

from make_methods import write_or_check

from sam_hf import SAMArguments

PAGE = Path(__file__).parent / "arguments.md"


def described() -> dict[str, tuple[str, str]]:
    """Of each argument in the docstring, what stands in brackets behind its name, and its description."""
    text = inspect.getdoc(SAMArguments) or ""
    text = text.partition("\nArgs:\n")[2].partition("\nRaises:\n")[0]
    found = re.findall(r"^    (\w+) \((.*)\):\n((?:        .*\n?)+)", text, flags=re.MULTILINE)
    return {name: (kind, inspect.cleandoc(description)) for name, kind, description in found}


def default(argument: Field) -> str:
    return f'`"{argument.default}"`' if isinstance(argument.default, str) else f"`{argument.default}`"


def overview() -> str:
    rows = ["| argument | type | default |", "|---|---|---|"]
    for argument in fields(SAMArguments):
        kind = described()[argument.name][0].partition(", *optional*")[0]
        rows.append(f"| [`{argument.name}`](#{argument.name}) | {kind} | {default(argument)} |")
    return "\n".join(rows)


def details() -> str:
    parts = []
    for argument in fields(SAMArguments):
        _, description = described()[argument.name]
        choices = argument.metadata.get("choices")
        allowed = f"One of {', '.join(f'`{choice}`' for choice in choices)}. " if choices else ""
        parts += [f"### {argument.name}", "", f"{allowed}Default: {default(argument)}.", "", description, ""]
    return "\n".join(parts).rstrip()


def main() -> None:
    write_or_check({PAGE: {"overview": overview(), "details": details()}}, __doc__)


if __name__ == "__main__":
    main()

"""
Writes the page of arguments from `SAMArguments`: its fields, their types, defaults and choices, and its docstring.

    python docs/make_arguments.py           # writes docs/arguments.md
    python docs/make_arguments.py --check   # exit status 1 if the page differs from the code
"""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path

from make_methods import write_or_check

from sam_hf.arguments.fields import SAMArguments, argument_descriptions

PAGE = Path(__file__).parent / "arguments.md"


def default(argument: Field) -> str:
    return f'`"{argument.default}"`' if isinstance(argument.default, str) else f"`{argument.default}`"


def overview() -> str:
    rows = ["| argument | type | default |", "|---|---|---|"]
    for argument in fields(SAMArguments):
        kinds = SAMArguments.__annotations__[argument.name].removesuffix(" | None").split(" | ")
        kind = " or ".join(f"`{kind}`" for kind in kinds)
        rows.append(f"| [`{argument.name}`](#{argument.name}) | {kind} | {default(argument)} |")
    return "\n".join(rows)


def details() -> str:
    parts = []
    for argument in fields(SAMArguments):
        description = argument_descriptions()[argument.name]
        choices = argument.metadata.get("choices")
        allowed = f"One of {', '.join(f'`{choice}`' for choice in choices)}. " if choices else ""
        parts += [f"### {argument.name}", "", f"{allowed}Default: {default(argument)}.", "", description, ""]
    return "\n".join(parts).rstrip()


def main() -> None:
    write_or_check({PAGE: {"overview": overview(), "details": details()}}, __doc__)


if __name__ == "__main__":
    main()

"""
Writes the tables and facts about the methods into the README and the pages on methods, between markers.

    python docs/make_methods.py           # writes
    python docs/make_methods.py --check   # exit status 1 if a page differs from the code
"""

from __future__ import annotations

import argparse
import configparser
import inspect
import json
import re
import sys
from pathlib import Path

from sam_hf.arguments.schedules import default_radius
from sam_hf.methods import METHODS, Method

ROOT = Path(__file__).parent.parent
_SETUP = configparser.ConfigParser()
_SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
# README.md is also shown by package indexes, where relative links lead nowhere
PAGES = f"{_SETUP['metadata']['url']}/blob/main/docs"


def paper_link(method: type[Method]) -> str:
    return f"[arXiv {method.paper.rpartition('/')[2]}]({method.paper})"


def equations(method: type[Method]) -> str:
    """Return the indented lines of the method's docstring."""
    lines = (inspect.getdoc(method) or "").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))


def compact_table() -> str:
    rows = ["| `sam_method` | passes per update | |", "|---|---|---|"]
    for name, method in METHODS.items():
        rows.append(f"| [`{name}`]({PAGES}/methods/{name}.md) | {method.cost.passes} | {method.summary} |")
    return "\n".join(rows)


def full_table() -> str:
    rows = [
        "| `sam_method` | | passes per update | copies of the trained weights | default ρ | own parameters | "
        "refused arguments | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        own = ", ".join(f"`{option}` {json.dumps(given.default)}" for option, given in method.options.items())
        cells = [
            f"[`{name}`](methods/{name}.md)",
            method.title,
            method.cost.passes,
            method.cost.memory,
            default_radius(method),
            own or "none",
            ", ".join(f"`{field}`" for field in method.refuses) or "nothing",
            paper_link(method),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def facts(method: type[Method]) -> str:
    return "\n".join(
        [
            f"**{method.title}.** {method.summary}",
            "",
            f"```text\n{equations(method)}\n```",
            "",
            "| | |",
            "|---|---|",
            f"| passes per update (k: `sam_ascent_steps`; plain training: 1) | {method.cost.passes} |",
            f"| copies of the trained weights at the peak, in addition to plain training | {method.cost.memory} |",
            f"| default `sam_rho` | {default_radius(method)} |",
            f"| default `sam_interval` | {method.default_interval} |",
            f"| state kept between updates | {'yes, saved with a checkpoint' if method.keeps_state else 'none'} |",
            f"| paper | {paper_link(method)} |",
        ]
    )


def parameters(method: type[Method]) -> str:
    if method.options:
        own = ["In `sam_method_kwargs`:", "", "| parameter | default | allowed | |", "|---|---|---|---|"]
        for name, option in method.options.items():
            own.append(f"| `{name}` | `{json.dumps(option.default)}` | {option.allowed} | {option.help} |")
    else:
        own = ["The method has no parameters of its own: `sam_method_kwargs` must be empty."]
    if method.refuses:
        refused = ["These arguments have no meaning for the method and are refused:", ""]
        for reason in dict.fromkeys(method.refuses.values()):
            fields = ", ".join(f"`{field}`" for field, why in method.refuses.items() if why == reason)
            refused.append(f"- {fields}: {reason}.")
    else:
        refused = ["All axes apply. No argument is refused."]
    return "\n".join([*own, "", *refused])


def citation(method: type[Method]) -> str:
    return f"```bibtex\n{method.citation}\n```"


def blocks() -> dict[Path, dict[str, str]]:
    """Return the content of each block of each page."""
    pages = {
        ROOT / "README.md": {"methods": compact_table()},
        ROOT / "docs" / "methods.md": {"methods": full_table()},
    }
    for name, method in METHODS.items():
        pages[ROOT / "docs" / "methods" / f"{name}.md"] = {
            "facts": facts(method),
            "parameters": parameters(method),
            "citation": citation(method),
        }
    return pages


def filled(text: str, contents: dict[str, str]) -> str:
    """
    Return `text` with new contents of its blocks.

    Raises:
        ValueError: The markers of a block do not occur exactly once.
    """
    for name, content in contents.items():
        block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"it has {count} blocks <!-- {name} --> ... <!-- /{name} -->, but needs one")
    return text


def write_or_check(pages: dict[Path, dict[str, str]], description: str | None) -> None:
    """Run the program: fill the blocks of `pages`, or with --check exit with status 1 if one of them differs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    changed = []
    for path, contents in pages.items():
        if not path.exists():
            names = ", ".join(contents)
            sys.exit(f"{path} is missing: write it with the blocks {names}, as in docs/methods/sam.md")
        before = path.read_text(encoding="utf-8")
        try:
            after = filled(before, contents)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        if before != after:
            changed.append(path)
            if not options.check:
                path.write_text(after, encoding="utf-8")
    sys.exit(int(options.check and bool(changed)))


def main() -> None:
    write_or_check(blocks(), __doc__)


if __name__ == "__main__":
    main()

"""
One self-contained HTML page: pictures, tables and text in one file that asks for nothing else.

Everything given here is text and is escaped; only what these functions return, `Html`, goes in as it is.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..plots import data as plot_data


class Html(str):
    """Text that is HTML already."""


@dataclass(frozen=True)
class Picture:
    """
    A picture on disk and what to say about it.

    Attributes:
        name (`str`): name of its files, without the ending.
        title (`str`): a heading.
        png, svg (`Path`): the files.
        shows (`str`): what is drawn, in a sentence or two.
        caution (`str`): how to read it, and how not to.
    """

    name: str
    title: str
    png: Path
    svg: Path
    shows: str
    caution: str = ""


# White paper under the pictures in the dark theme too: their lines are made for it
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --ground: #fff; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9ea7b3; --line: #3d444d; --ground: #0d1117; --band: #161b22; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, .note, figcaption p + p { color: var(--soft); }
.note { font-size: .92rem; margin: 1.2rem 0 -.4rem; }
a { color: inherit; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem; }
figcaption { margin-top: .5rem; font-size: .95rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem 0 .28rem 1.6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; min-width: 8.5rem; max-width: 22rem; white-space: normal; overflow-wrap: break-word; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--soft); }
code { font-size: .92em; background: var(--band); padding: .05em .3em; border-radius: 4px; overflow-wrap: anywhere; }
@media print { details > * { display: block; } figure, table { break-inside: avoid; } }
"""


def write(path: str | Path, title: str, parts: Iterable[str]) -> Path:
    """Write the page, UTF-8. Parts are what the functions below return, in their order."""
    path = Path(path)
    # The policy forbids what the page does not need anyway: scripts, and anything from elsewhere
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    lines = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">',
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        "</main>\n</body>\n</html>\n",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def heading(text: str, level: int = 2) -> Html:
    return Html(f"<h{level}>{_cell(text)}</h{level}>")


def paragraph(*text: str, soft: bool = False) -> Html:
    """Text and pieces of `Html`, one after the other."""
    return Html(f"<p{' class=soft' if soft else ''}>{''.join(map(_cell, text))}</p>")


def link(text: str, address: str) -> Html:
    return Html(f'<a href="{escape(address)}">{escape(text)}</a>')


def code(text: str) -> Html:
    return Html(f"<code>{escape(text)}</code>")


def figure(picture: Picture) -> Html:
    """The picture as SVG, inside the page. As an image: what an SVG may hold cannot act on the page."""
    svg = picture.svg.read_bytes()
    points = re.search(rb'<svg [^>]*?\bwidth="([\d.]+)pt"', svg)
    width = f' style="width: {2.2 * float(points[1]):.0f}px"' if points else ""  # made for print: small on a screen
    caution = f"\n<p>{escape(picture.caution)}</p>" if picture.caution else ""
    return Html(
        f'<figure id="{escape(picture.name)}">\n'
        f'<img alt="{escape(f"{picture.title}. {picture.shows}")}"{width}'
        f' src="data:image/svg+xml;base64,{base64.b64encode(svg).decode("ascii")}">\n'
        f"<figcaption><p>{escape(picture.shows)}</p>{caution}</figcaption>\n</figure>"
    )


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str = "") -> Html:
    """Rows under a header; the first column names the row, the others are aligned as numbers are."""
    head = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return Html(f'{_above(caption)}<div class="scroll"><table>{inside}</table></div>')


def facts(values: Mapping[str, Any], caption: str = "") -> Html:
    """Names and what they are: settings, an environment."""
    body = "\n".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{_cell(_plain(value))}</td></tr>'
        for key, value in values.items()
    )
    return Html(f'{_above(caption)}<div class="scroll"><table class="facts"><tbody>\n{body}\n</tbody></table></div>')


def details(summary: str, *parts: str) -> Html:
    """What only some readers want: folded until they ask."""
    return Html(f"<details><summary>{escape(summary)}</summary>\n{''.join(parts)}\n</details>")


def number(value: Any, digits: int = 4) -> str:
    """A number of `digits` figures; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,}".replace("-", "−") if isinstance(value, int) else plot_data.number(value, digits)


def measured(value: Any, error: Any) -> str:
    """
    value ± error, both to the error's second figure; without the error where there is no finite one. An error too
    small to show in five figures has its own.
    """
    known = isinstance(error, int | float) and math.isfinite(error) and error > 0
    if not known or not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    places = 1 - math.floor(math.log10(error))
    if error < 1e-4 * abs(value) or places > 6 or abs(value) >= 1e7:
        return f"{number(float(value), 5)} ± {number(float(error), 2)}"
    return f"{round(value, places):.{max(places, 0)}f} ± {round(error, places):.{max(places, 0)}f}".replace("-", "−")


def _above(caption: str) -> str:
    # Not a <caption>, which scrolls sideways with a wide table
    return f'<p class="note">{_cell(caption)}</p>' if caption else ""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "–" if value is None else str(value)


def _cell(value: Any) -> str:
    return value if isinstance(value, Html) else escape(str(value))

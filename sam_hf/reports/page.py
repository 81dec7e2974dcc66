"""Reports rendered from the jinja2 templates in `templates/`: self-contained HTML pages, and Markdown."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from .. import plots
from ..plots import data as plot_data

PLOTS_ARE_MISSING = 'pictures need matplotlib: pip install "sam-hf[plot]"'


class Table(NamedTuple):
    """The cells of a table as text. The first cell of a row is the row's name."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """
    A picture on disk.

    Attributes:
        name (`str`): the name of its files without the ending, and the id of its figure on a page.
        png, svg (`Path`): the files.
    """

    name: str
    png: Path
    svg: Path

    @property
    def address(self) -> str:
        """The SVG as a `data:` address for `<img>`, where nothing inside the SVG can act on the page."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.read_bytes()).decode("ascii")

    @property
    def width(self) -> str:
        """The width on a screen in pixels, if the SVG has one. Its own size is made for print and is too small."""
        points = re.search(rb'<svg [^>]*?\bwidth="([\d.]+)pt"', self.svg.read_bytes())
        return f"{2.2 * float(points[1]):.0f}" if points else ""


def can_draw() -> bool:
    """Return whether matplotlib, which is optional, is installed."""
    return find_spec("matplotlib") is not None


def save_pictures(axes: Mapping[str, Any], folder: str | Path) -> list[Picture]:
    """Save the figure of each matplotlib Axes under its name, as PNG and as SVG."""
    return [Picture(name, *plots.save(ax.figure, folder, name)) for name, ax in axes.items()]


def aligned(table: Table) -> str:
    """Return a table with aligned columns, for the terminal."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def render(template: str, **content: Any) -> str:
    """Fill in a template. All templates except those of Markdown escape the text that they are given."""
    return _TEMPLATES.get_template(template).render(content)


def write(path: str | Path, template: str, **content: Any) -> Path:
    """Write a filled-in template to `path` in UTF-8. Its folder is made if it does not exist."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(template, **content), encoding="utf-8")
    return path


def number(value: Any, digits: int = 4) -> str:
    """Return a number with `digits` significant digits, or a dash for `None` and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,}".replace("-", "−") if isinstance(value, int) else plot_data.number(value, digits)


def measured(value: Any, error: Any) -> str:
    """
    Return "value ± error", both rounded to the second significant digit of the error. Without a finite error, return
    the value only. An error that is too small to be seen in five digits of the value is rounded separately.
    """
    known = isinstance(error, int | float) and math.isfinite(error) and error > 0
    if not known or not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    places = 1 - math.floor(math.log10(error))
    if error < 1e-4 * abs(value) or places > 6 or abs(value) >= 1e7:
        return f"{number(float(value), 5)} ± {number(float(error), 2)}"
    return f"{round(value, places):.{max(places, 0)}f} ± {round(error, places):.{max(places, 0)}f}".replace("-", "−")


def _setting(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "–" if value is None else str(value)


_TEMPLATES = Environment(
    loader=PackageLoader("sam_hf.reports"),
    autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["setting"] = _setting

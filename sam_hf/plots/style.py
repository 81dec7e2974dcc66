"""The style of the pictures: colours, lines, ticks and legends. This module works on Axes and needs no matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is hard to see on white paper
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMN = 3.4  # inches: one column of a printed page
LABEL, TICK = 8, 7  # points, readable at that width
# For markers on a coloured area, which may lie on its edge
OUTLINE: dict[str, Any] = {
    "markeredgecolor": "black",
    "markeredgewidth": 0.7,
    "linestyle": "none",
    "clip_on": False,
    "zorder": 5,
}


def look(index: int) -> dict[str, Any]:
    """Return the line options of model number `index`. Models differ in colour, in line style and in marker."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.2,
    }


def dress(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Set labels, small ticks and a faint grid, and remove the frame on the sides without an axis."""
    ax.set_xlabel(xlabel, fontsize=LABEL)
    ax.set_ylabel(ylabel, fontsize=LABEL)
    ax.tick_params(which="both", labelsize=TICK, width=0.6, length=2.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set_fontsize(TICK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_linewidth(0.6)
    ax.grid(True, color="0.9", linewidth=0.5)
    ax.set_axisbelow(True)


def legend(ax: Axes, handles: Sequence[Any], below: bool = False) -> Axes:
    """Put the legend outside the Axes, where it hides nothing: above them, or `below` the whole figure."""
    # Labels are passed in addition to handles: matplotlib leaves out artists whose own label starts with an underscore
    labels = [handle.get_label() for handle in handles]
    options: dict[str, Any] = {"fontsize": TICK, "frameon": False, "handlelength": 2.6, "columnspacing": 1.2}
    if below:
        ax.figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), **options)
    else:
        columns = 2 if len(handles) > 2 and max(map(len, labels)) < 24 else 1
        ax.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=columns, **options
        )
    return ax


def log_if_wide(ax: Axes, curves: Sequence[Any], factor: float = 50) -> None:
    """Make the y axis logarithmic if all values are above 0 and the highest is more than `factor` times the lowest."""
    values = np.concatenate([np.asarray(curve, dtype=float) for curve in curves])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > factor * values.min():
        ax.set_yscale("log")
        if values.max() > 1e3 * values.min():
            ax.set_yticks([], minor=True)


def symlog_ticks(ax: Axes, linear: float) -> None:
    """Set the ticks of a symmetric logarithmic x axis: 0 and as many powers of ten as their labels leave room for."""
    low, high = ax.get_xlim()
    first = int(np.ceil(np.log10(linear) - 1e-9))
    last = int(np.floor(np.log10(max(abs(low), abs(high), linear))))
    stride = 1 + (last - first) // 4
    powers = 10.0 ** np.arange(last, first - 1, -stride)[::-1]
    negative = [-power for power in powers if -power >= low][-1:]  # only the one next to 0: the negative side is short
    ax.set_xticks([*negative, 0.0, *powers])
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(tick)


def tick(value: float, _position: Any = None) -> str:
    return number(value)

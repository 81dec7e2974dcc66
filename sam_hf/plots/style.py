"""The style of the pictures: colours, lines, ticks and legends. This module works on Axes and needs no matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .data import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is hard to see on white paper
_SAFE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Then colours that differ from these and from each other. Not everyone can tell all of them apart
COLORS = (*_SAFE, "#882255", "#8C8C00", "#332288", "#8C8C8C", "#7B4A12", "#E31A1C", "#00CED1", "#B15CFF")
# The three numbers of entries have no common factor. So 60 models differ in every pair of these properties
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", "p", ">")
_LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 2.6, "columnspacing": 1.2}
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


def legend(ax: Axes, handles: Sequence[Any], grow: bool) -> Axes:
    """
    Put the legend above the Axes, where it hides nothing, in two columns if they fit.

    Args:
        grow (`bool`): enlarge the figure by what the legend needs, so that the Axes keep their size. Without it the
            figure belongs to the caller and stays as it is.
    """
    # Labels are passed in addition to handles: matplotlib leaves out artists whose own label starts with an underscore
    labels, figure = [handle.get_label() for handle in handles], cast(Any, ax.get_figure(root=True))
    figure.draw_without_rendering()  # the layout finds where the Axes begin, and with them the legend
    padding = 0.2
    edge = (figure if grow or len(figure.axes) == 1 else ax).bbox.x1
    room = edge - ax.bbox.x0 - 2 * padding * TICK * figure.dpi / 72
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": padding}
    for columns in (2, 1) if len(handles) > 2 else (1,):
        made = ax.legend(handles, labels, ncols=columns, fontsize=TICK, **place, **_LEGEND)
        box = made.get_window_extent()
        if box.width <= room:
            break
    if grow:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + max(0, box.width - room) / figure.dpi, height + box.height / figure.dpi)
    return ax


def figure_legend(figure: Any, handles: Mapping[str, Any], loc: str, columns: int, grow: bool = True) -> None:
    """
    Put a legend at the edge of a figure whose layout is constrained.

    Args:
        handles (`Mapping[str, Any]`): what to explain, by label.
        loc (`str`): the place, such as `"outside lower center"`.
        columns (`int`): the number of columns. There are fewer if they would not fit.
        grow (`bool`, *optional*, defaults to `True`): as for `legend`.
    """
    for count in range(min(columns, len(handles)), 0, -1):
        made = figure.legend(list(handles.values()), list(handles), loc=loc, ncols=count, fontsize=TICK, **_LEGEND)
        box = made.get_window_extent()
        if box.width <= figure.bbox.width or count == 1:
            break
        made.remove()
    if grow and handles:
        width, height = figure.get_size_inches()
        figure.set_size_inches(max(width, box.width / figure.dpi), height + box.height / figure.dpi)


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

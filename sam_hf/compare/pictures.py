"""Pictures of a comparison: numbers in, matplotlib Axes out, in the look of [`sam_hf.plots.draw`](../plotting.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..plots.data import shown
from ..plots.style import COLORS, COLUMN, LABEL, MARKERS, TICK, dress, look
from .statistics import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .statistics import Difference, Sample


def draw_against_noise(samples: Mapping[str, Mapping[float, Sample]], *, metric: str, factor: float = 1.0) -> Axes:
    """
    Mean and standard deviation over seeds against the share of wrong labels, a line a variant.

    Args:
        samples (`Mapping[str, Mapping[float, Sample]]`): by variant and noise rate.
        metric (`str`): what the y axis says.
        factor (`float`, *optional*, defaults to `1.0`): of values, `100` for percent.
    """
    figure = _figure(1.6 * COLUMN, 3.2 + 0.2 * -(-len(samples) // 3))
    ax = figure.add_subplot()
    rates = sorted({rate for by_rate in samples.values() for rate in by_rate})
    names = shown(samples)
    handles = []
    for index, (name, by_rate) in enumerate(samples.items()):
        # Side by side, or error bars of many variants hide each other
        shift = 0.4 * (index - (len(samples) - 1) / 2) / max(len(samples), 2)
        points = [(rates.index(r) + shift, s) for r, s in sorted(by_rate.items()) if s.mean is not None]
        if points:
            handles.append(
                ax.errorbar(
                    [x for x, _ in points],
                    [factor * s.mean for _, s in points if s.mean is not None],
                    yerr=[factor * (s.deviation or 0.0) for _, s in points],
                    label=names[name],
                    capsize=2,
                    elinewidth=0.8,
                    **_look(index),
                )
            )
    ax.set_xticks(range(len(rates)), [f"{rate:.0%}" for rate in rates])
    dress(ax, "label noise in training", metric)
    _legend(figure, {handle.get_label(): handle for handle in handles})
    return ax


def draw_differences(
    panels: Mapping[str, Mapping[str, Mapping[str, Difference]]], *, xlabel: str, factor: float = 1.0
) -> Axes:
    """
    A forest plot: paired differences and their 95% confidence intervals around a line at 0.

    Args:
        panels (`Mapping[str, Mapping[str, Mapping[str, Difference]]]`):
            By heading (a panel), variant (a row) and opponent (colour and marker).
        xlabel (`str`): what the difference is.
        factor (`float`, *optional*, defaults to `1.0`): of values.
    """
    variants = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    opponents = list(dict.fromkeys(o for panel in panels.values() for row in panel.values() for o in row))
    names = shown(variants)
    figure = _figure(1.3 + 1.9 * len(panels), 1.1 + 0.3 * len(variants))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    for ax, (heading, panel) in zip(axes, panels.items(), strict=True):
        for name, row in panel.items():
            for opponent, difference in row.items():
                index = opponents.index(opponent)
                y = variants.index(name) + 0.24 * (index - (len(opponents) - 1) / 2)
                handles.setdefault(opponent, _interval(ax, y, difference, factor, look(index)))
        ax.axvline(0, color="black", linewidth=0.8, zorder=1)
        ax.set_title(heading, fontsize=LABEL)
        dress(ax, "", "")
    axes[0].set_yticks(range(len(variants)), [names[name] for name in variants])
    axes[0].set_ylim(len(variants) - 0.4, -0.6)
    figure.supxlabel(xlabel, fontsize=LABEL)
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=2, fontsize=TICK, frameon=False
    )
    return axes[0]


def _interval(ax: Axes, y: float, difference: Difference, factor: float, style: dict[str, Any]) -> Any:
    """Filled where it is significant after adjustment."""
    mean = factor * difference.mean
    error = None
    if difference.low is not None and difference.high is not None:
        error = [[mean - factor * difference.low], [factor * difference.high - mean]]
    sure = difference.adjusted_p is not None and difference.adjusted_p < 1 - CONFIDENCE
    style = {**style, "linestyle": "none", "elinewidth": 1.1, "markersize": 4}
    return ax.errorbar(mean, y, xerr=error, markerfacecolor=style["color"] if sure else "white", **style)


def draw_against_compute(
    panels: Mapping[str, Mapping[str, tuple[float, Sample]]], *, metric: str, unit: str, factor: float = 1.0
) -> Axes:
    """
    Mean and standard deviation against what training cost, a panel a noise rate.

    Args:
        panels (`Mapping[str, Mapping[str, tuple[float, Sample]]]`): by heading and variant, compute and result.
        metric (`str`): what the y axis says.
        unit (`str`): what compute is counted in.
        factor (`float`, *optional*, defaults to `1.0`): of values.
    """
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    variants = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    names = shown(variants)
    costs = [compute for panel in panels.values() for compute, _ in panel.values()]
    width = (max(costs) - min(costs)) or max(costs)
    figure = _figure(0.6 + 2.4 * columns, 0.6 + 2.2 * lines + 0.2 * -(-len(variants) // 3))
    axes = figure.subplots(lines, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for ax, (heading, panel) in zip(axes.flat, panels.items(), strict=False):
        for name, (compute, sample) in panel.items():
            index = variants.index(name)
            equal = [other for other, (cost, _) in panel.items() if cost == compute]  # these stand side by side
            x = compute + 0.02 * width * (equal.index(name) - (len(equal) - 1) / 2)
            if sample.mean is not None:
                style = {**_look(index), "linestyle": "none", "markersize": 4.5}
                error = factor * (sample.deviation or 0.0)
                handles[name] = ax.errorbar(x, factor * sample.mean, yerr=error, elinewidth=0.8, capsize=2, **style)
        ax.set_xlim(min(costs) - 0.13 * width, max(costs) + 0.13 * width)
        ax.set_title(heading, fontsize=LABEL)
        dress(ax, unit, "")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    figure.supylabel(metric, fontsize=LABEL)
    _legend(figure, {names[name]: handles[name] for name in variants if name in handles})
    return axes[0][0]


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """Below the panels: there may be many variants."""
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=TICK, frameon=False
    )


def _look(index: int) -> dict[str, Any]:
    """`look`, with the markers moved on where the colours begin again."""
    return {**look(index), "marker": MARKERS[(index + 3 * (index // len(COLORS))) % len(MARKERS)]}


def _figure(width: float, height: float) -> Any:
    # Through plotting, which says what to install where matplotlib is missing
    from ..plots.draw import Figure

    return Figure(figsize=(width, height), layout="constrained")

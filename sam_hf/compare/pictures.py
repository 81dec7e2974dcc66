"""Pictures of a comparison. The functions take numbers and return matplotlib Axes, in the style of `sam_hf.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..plots.data import legend_names
from ..plots.style import COLUMN, LABEL, dress, figure_legend, look
from .plan import percent
from .statistics import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .statistics import Difference, Sample


def draw_against_noise(samples: Mapping[str, Mapping[float, Sample]], *, metric: str, factor: float = 1.0) -> Axes:
    """
    Draw mean and standard deviation over seeds against the share of wrong labels, with one line per variant.

    Args:
        samples (`Mapping[str, Mapping[float, Sample]]`): the results by variant and noise rate.
        metric (`str`): label of the y axis.
        factor (`float`, *optional*, defaults to `1.0`): what values are multiplied by, `100` for percent.
    """
    figure = _figure(1.6 * COLUMN, 3.2)
    ax = figure.add_subplot()
    rates = sorted({rate for by_rate in samples.values() for rate in by_rate})
    names = legend_names(samples)
    handles = {}
    for index, (name, by_rate) in enumerate(samples.items()):
        # Each point is exactly at its rate. Bars that cover each other can be told apart by the widths of their caps
        caps = 1.5 + 3 * index / max(1, len(samples) - 1)
        points = [(rates.index(r), sample) for r, sample in sorted(by_rate.items()) if sample.mean is not None]
        if points:
            handles[names[name]] = _points(ax, points, factor, {**look(index), "capsize": caps})
    ax.set_xticks(range(len(rates)), [percent(rate) for rate in rates])
    dress(ax, "label noise in training", metric)
    figure_legend(figure, handles, "outside lower center", columns=3)
    return ax


def draw_differences(
    panels: Mapping[str, Mapping[str, Mapping[str, Difference]]], *, xlabel: str, factor: float = 1.0
) -> Axes:
    """
    Draw a forest plot: paired differences and their 95% confidence intervals around a line at 0.

    Args:
        panels (`Mapping[str, Mapping[str, Mapping[str, Difference]]]`):
            The differences by heading (one panel each), variant (one row each) and opponent (colour and marker).
        xlabel (`str`): label of the x axis.
        factor (`float`, *optional*, defaults to `1.0`): what values are multiplied by.
    """
    variants = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    opponents = list(dict.fromkeys(o for panel in panels.values() for row in panel.values() for o in row))
    names = legend_names(variants)
    figure = _figure(1.3 + 1.9 * len(panels), 0.9 + 0.3 * len(variants))
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
    figure_legend(figure, handles, "outside upper center", columns=2)
    return axes[0]


def _interval(ax: Axes, y: float, difference: Difference, factor: float, style: dict[str, Any]) -> Any:
    """Draw a difference with its interval. The marker is filled if the difference is significant after adjustment."""
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
    Draw mean and standard deviation against the compute of training, with one panel per noise rate.

    Args:
        panels (`Mapping[str, Mapping[str, tuple[float, Sample]]]`): compute and result by heading and variant.
        metric (`str`): label of the y axis.
        unit (`str`): the unit of compute, label of the x axis.
        factor (`float`, *optional*, defaults to `1.0`): what values are multiplied by.
    """
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    variants = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    names = legend_names(variants)
    costs = [compute for panel in panels.values() for compute, _ in panel.values()]
    width = (max(costs) - min(costs)) or max(costs)
    figure = _figure(0.6 + 2.4 * columns, 0.6 + 2.2 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for ax, (heading, panel) in zip(axes.flat, panels.items(), strict=False):
        for name, (compute, sample) in panel.items():
            index = variants.index(name)
            equal = [other for other, (cost, _) in panel.items() if cost == compute]  # drawn side by side
            x = compute + min(0.02, 0.2 / len(equal)) * width * (equal.index(name) - (len(equal) - 1) / 2)
            if sample.mean is not None:
                style = {**look(index), "linestyle": "none", "markersize": 4.5, "capsize": 2}
                handles[name] = _points(ax, [(x, sample)], factor, style)
        ax.set_xlim(min(costs) - 0.13 * width, max(costs) + 0.13 * width)
        ax.set_title(heading, fontsize=LABEL)
        dress(ax, unit, "")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    figure.supylabel(metric, fontsize=LABEL)
    drawn = {names[name]: handles[name] for name in variants if name in handles}
    figure_legend(figure, drawn, "outside lower center", columns=3)
    return axes[0][0]


def _points(ax: Axes, points: Sequence[tuple[float, Sample]], factor: float, style: dict[str, Any]) -> Any:
    """Draw means with their standard deviations, if any."""
    means = [factor * (sample.mean or 0.0) for _, sample in points]
    deviations = [factor * (sample.deviation or 0.0) for _, sample in points]
    return ax.errorbar([x for x, _ in points], means, yerr=deviations, elinewidth=0.8, **style)


def _figure(width: float, height: float) -> Any:
    # From `plots`, which says what to install if matplotlib is missing
    from ..plots.draw import Figure

    return Figure(figsize=(width, height), layout="constrained")

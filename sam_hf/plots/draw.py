"""The drawing functions of `sam_hf.plots`. This module needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

try:
    import matplotlib
except ImportError as error:
    raise ImportError('Pictures need matplotlib: pip install "sam-hf[plot]"') from error
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import data as data
from . import style as style
from .data import CURVES, legend_names, number
from .style import COLORS, COLUMN, LABEL, LINES, MARKERS, TICK, dress

Curve: TypeAlias = "tuple[Any, Any]"


def draw_spectral_density(
    spectra: Mapping[str, Curve],
    *,
    lambda_max: Mapping[str, float] | None = None,
    sigma: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """
    Draw densities of the Hessian's eigenvalues on one axis. The density axis is logarithmic. The λ axis is linear
    around 0 and logarithmic beyond, so that both the bulk at 0 and a few far outliers are visible.

    Args:
        spectra (`Mapping[str, tuple]`): for each model, eigenvalues in ascending order and the density at them, both
            of shape `(n,)`.
        lambda_max (`Mapping[str, float]`, *optional*): λmax of models, drawn as a vertical line with a triangle and
            written in the legend.
        sigma (`float`, *optional*): half the width of the linear part of the λ axis. Give the smallest width that the
            densities were smoothed with, below which they show no detail. Defaults to 1 % of the widest range.
        ax (`Axes`, *optional*): the Axes to draw on.
    """
    curves = {name: data.curve(name, curve) for name, curve in data.not_empty(spectra).items()}
    limits = data.density_limits([density for _, density in curves.values()])
    marked, labels = lambda_max or {}, legend_names(curves)
    grow, ax = ax is None, _axes(ax)
    handles = []
    for index, (name, (values, density)) in enumerate(curves.items()):
        color, line = COLORS[index % len(COLORS)], LINES[index % len(LINES)]
        label = f"{labels[name]}: λmax = {number(marked[name])}" if name in marked else labels[name]
        handles += ax.plot(values, density, color=color, linestyle=line, linewidth=1.2, label=label)
        if name in marked:
            ax.axvline(marked[name], color=color, linestyle=line, linewidth=0.6, alpha=0.7, zorder=1)
            ax.plot(marked[name], 0.97, "v", transform=ax.get_xaxis_transform(), color=color, markersize=5)
    sigma = sigma or 0.01 * max(float(np.ptp(values)) for values, _ in curves.values()) or 1.0
    ax.set_xscale("symlog", linthresh=sigma, linscale=0.6)
    style.symlog_ticks(ax, sigma)
    ax.set_yscale("log")
    ax.set_yticks([], minor=True)
    ax.set_ylim(*limits)
    dress(ax, "eigenvalue λ (loss / weight²)", "density (1/λ)")
    return style.legend(ax, handles, grow)


def draw_loss_slices(
    slices: Mapping[str, Curve],
    *,
    xlabel: str = "α along one direction (filter norms)",
    loss: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """
    Draw losses along a direction, L(w + αd), of several models on one axis. α = 0 is the model itself.

    Args:
        slices (`Mapping[str, tuple]`): for each model, α and the loss there, both of shape `(n,)`.
        xlabel (`str`, *optional*): what α is, with its unit.
        loss (`str`, *optional*, defaults to `"loss"`): the loss and its unit, for example "cross-entropy (nats)".
        ax (`Axes`, *optional*): the Axes to draw on.
    """
    grow, ax = ax is None, _axes(ax)
    handles = []
    for index, (name, curve) in enumerate(data.not_empty(slices).items()):
        handles += ax.plot(*data.curve(name, curve), **style.look(index), label=legend_names(slices)[name])
    ax.axvline(0, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    style.log_if_wide(ax, [line.get_ydata() for line in handles])
    ax.xaxis.set_major_locator(MaxNLocator(5))
    dress(ax, xlabel, loss)
    return style.legend(ax, handles, grow)


def draw_loss_between(
    t: Any, losses: Any, ends: tuple[str, str], *, loss: str = "loss", ax: Axes | None = None
) -> Axes:
    """
    Draw the loss on the straight line between two models. A straight dotted line joins the losses of the two.

    Args:
        t (`array`): the positions, of shape `(n,)`. 0 is the first model, 1 the second.
        losses (`array`): the loss at each, of the same shape.
        ends (`tuple[str, str]`): the names of the two models.
        loss (`str`, *optional*, defaults to `"loss"`): the loss and its unit.
        ax (`Axes`, *optional*): the Axes to draw on.
    """
    ax = _axes(ax)
    t, losses = data.curve("between", (t, losses))
    ax.plot(t, losses, **style.look(0))
    at_ends = [float(losses[np.argmin(np.abs(t - end))]) for end in (0, 1)]
    ax.plot([0, 1], at_ends, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    labels = [legend_names(ends, 24)[end] for end in ends]
    for index, end in enumerate((0, 1)):
        ax.axvline(end, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        ax.annotate(
            labels[index],
            (end, 1.02),
            xycoords=ax.get_xaxis_transform(),
            ha="left" if index == 0 else "right",
            fontsize=TICK,
            color="0.2",
        )
    style.log_if_wide(ax, [losses])
    dress(ax, "t, share of the way from the first to the second", loss)
    return ax


def draw_m_sharpness(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    p: str | float = 2,
    rho: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """
    Draw m-sharpness against m: the mean over groups with one standard error, and the worst group.

    Args:
        rows (`Mapping[str, Sequence]`): for each model, `{"m": …, "mean": …, "error": …, "max": …}` for each m.
            `error` and `max` may be missing. An error that is not finite (a single group) is not drawn.
        p (`float` or `str`, *optional*, defaults to `2`): the order of the norm for the label, 2 or inf.
        rho (`float`, *optional*): the radius for the label.
        ax (`Axes`, *optional*): the Axes to draw on.
    """
    grow, ax = ax is None, _axes(ax)
    handles: list[Any] = []
    drawn: list[np.ndarray] = []
    labels = legend_names(data.not_empty(rows))
    for index, (name, of_model) in enumerate(rows.items()):
        ordered = sorted(of_model, key=lambda row: row["m"])
        look = style.look(index) | {"linestyle": "-"}
        m, mean = data.curve(name, ([row["m"] for row in ordered], [row["mean"] for row in ordered]))
        error, worst = (data.array([row.get(key) for row in ordered]) for key in ("error", "max"))
        error[~np.isfinite(error)] = np.nan
        handles.append(ax.errorbar(m, mean, error, **look, capsize=2.5, label=f"{labels[name]}: mean ± s.e."))
        if np.isfinite(worst).any():
            look |= {"linestyle": "--", "markerfacecolor": "white"}
            handles += ax.plot(m, worst, **look, label=f"{labels[name]}: worst group")
        drawn += [mean, worst]
    sizes = sorted({row["m"] for of_model in rows.values() for row in of_model})
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.set_xticks([], minor=True)
    style.log_if_wide(ax, drawn, 30)
    ball = f"‖ε‖{'$_2$' if float(p) == 2 else '$_∞$'} ≤ {'ρ' if rho is None else number(rho)}"
    dress(ax, "m, examples that share one ε", f"max L(w+ε) − L(w), {ball}\n(units of the loss)")
    return style.legend(ax, handles, grow)


def draw_loss_surfaces(
    surfaces: Mapping[str, tuple[Any, Any, Any]],
    *,
    levels: Sequence[float] | int = 12,
    loss: str = "loss",
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """
    Draw contours of loss surfaces L(w + αd₁ + βd₂) side by side. They share one scale and one colour bar, so the same
    colour means the same loss. A cross marks the model itself, a triangle the lowest point of the grid. Where the loss
    is not finite, the picture is grey.

    Args:
        surfaces (`Mapping[str, tuple]`): for each model, α of shape `(n,)`, β of shape `(k,)` and losses of shape
            `(n, k)`.
        levels (`Sequence[float]` or `int`, *optional*, defaults to `12`): the levels, or their approximate number.
            They are spaced evenly, or by equal factors if the highest loss is more than ten times the lowest.
        loss (`str`, *optional*, defaults to `"loss"`): the loss and its unit.
        axes (`Sequence[Axes]`, *optional*): the Axes to draw on, one per surface, in one figure.
    """
    grids = {name: data.grid(name, *surface) for name, surface in data.not_empty(surfaces).items()}
    grow, axes = axes is None, _row_of_axes(len(grids)) if axes is None else list(axes)
    if len(axes) != len(grids):
        raise ValueError(f"{len(axes)} axes were given for {len(grids)} surfaces. Give one for each.")
    steps, scale = data.shared_levels([values for *_, values in grids.values()], levels, _rounded_levels)
    for ax, (name, (x, y, values)) in zip(axes, grids.items(), strict=True):
        masked = np.ma.masked_invalid(values.T)
        ax.set_facecolor("0.85")
        filled = ax.contourf(x, y, masked, levels=steps, norm=scale, cmap="cividis")
        ax.contour(x, y, masked, levels=steps, norm=scale, colors="white", linewidths=0.4)
        i, j = np.unravel_index(np.argmin(np.where(np.isfinite(values), values, np.inf)), values.shape)
        # The smaller marker is drawn last, since the two often coincide
        ax.plot(x[i], y[j], "v", color=COLORS[4], markersize=9, label="lowest point of the grid", **style.OUTLINE)
        ax.plot(0, 0, "X", color="white", markersize=5.5, label="the model itself", **style.OUTLINE)
        dress(ax, "α along d₁ (filter norms)", "β along d₂ (filter norms)" if ax is axes[0] else "")
        ax.grid(False)
        ax.set_aspect("equal")
        ax.set_title(f"{legend_names(grids)[name]}\nlowest {number(values[i, j])}", fontsize=LABEL)
    bar = axes[0].figure.colorbar(filled, ax=axes, ticks=steps[:: max(1, len(steps) // 6)], format=style.tick)
    bar.set_label(loss, fontsize=LABEL)
    bar.ax.tick_params(labelsize=TICK)
    bar.ax.minorticks_off()
    markers = {str(line.get_label()): line for line in axes[0].get_lines()}
    style.figure_legend(axes[0].figure, markers, "outside lower center", 2, grow)
    return axes


def draw_training_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    keys: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """
    Draw what runs logged, such as loss, sharpness and cosine, one metric below the other on a common axis of updates.

    Args:
        histories (`Mapping[str, Sequence]`): for each run, Trainer's `state.log_history`: dictionaries with `step`.
            What a run did not log is not drawn.
        keys (`Sequence[str]`, *optional*): the metrics to draw, from the top: `loss` (with `eval_loss`, which has open
            markers), `sam_sharpness`, `sam_grad_cosine`, `sam_rho`, `eval_sharpness_lambda_max` or `eval_sharpness_m`.
            Defaults to those that any run logged, with `sam_rho` only if it changes.
        axes (`Sequence[Axes]`, *optional*): the Axes to draw on, one per key.
    """
    keys = data.logged(data.not_empty(histories)) if keys is None else list(keys)
    if not keys or set(keys) - set(CURVES):
        raise ValueError(f"keys={keys} is not allowed: it must be some of {', '.join(CURVES)} that a run logged.")
    grow = axes is None
    if axes is None:
        figure = Figure(figsize=(COLUMN * 1.25, 0.5 + 1.35 * len(keys)), layout="constrained")
        axes = list(figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0])
    if len(axes) != len(keys):
        raise ValueError(f"{len(axes)} axes were given for {len(keys)} curves ({', '.join(keys)}). Give one for each.")
    handles: list[Any] = []
    labels = legend_names(histories)
    for ax, key in zip(axes, keys, strict=True):
        for index, (name, entries) in enumerate(histories.items()):
            marker = MARKERS[index % len(MARKERS)] if key.startswith("eval_") else ""
            look = style.look(index) | {"marker": marker}
            drawn = ax.plot(*data.history(entries, key), **look, label=labels[name])
            handles += drawn if ax is axes[0] else []
            if key == "loss" and len(data.history(entries, "eval_loss")[0]):
                open_marker = {"marker": MARKERS[index % len(MARKERS)], "markerfacecolor": "white", "linewidth": 0.7}
                look |= open_marker | {"label": f"{labels[name]}: evaluation"}
                handles += ax.plot(*data.history(entries, "eval_loss"), **look)
        dress(ax, "update" if ax is axes[-1] else "", CURVES[key])
    style.legend(axes[0], handles, grow)
    return list(axes)


def save(figure: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """
    Write `name.png` (200 dots per inch) and `name.svg` (with text as text) into `folder`. The same figure gives the
    same bytes: the files have no date, and their ids depend on `name` only.

    Args:
        figure (`Figure`): the figure, for example `ax.figure`.
        folder (`str` or `Path`): the folder, which is created if necessary.
        name (`str`): the file name without its ending.

    Returns:
        `tuple[Path, Path]`: the paths of the PNG and the SVG file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=200, facecolor="white")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # savefig has no options for these
        figure.savefig(svg, facecolor="white", metadata={"Date": None, "Creator": None})
    return png, svg


def _axes(ax: Axes | None) -> Axes:
    return Figure(figsize=(COLUMN, 2.45), layout="constrained").add_subplot() if ax is None else ax


def _row_of_axes(count: int) -> list[Axes]:
    figure = Figure(figsize=(0.9 + 2.75 * count, 3.3), layout="compressed")
    return list(figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0])


def _rounded_levels(lowest: float, highest: float, count: int) -> Any:
    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(lowest, highest)

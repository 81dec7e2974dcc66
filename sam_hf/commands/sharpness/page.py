"""The pictures and the HTML page of `sam-hf sharpness`, from what it wrote to `sharpness.json`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...reports import page
from ...reports.page import Picture
from . import tables as sharpness_tables
from .tables import named

Result = Mapping[str, Any]

_GLANCE = (
    "All of it was measured in evaluation mode (no dropout), on the examples and with the loss under Settings. "
    "Compare models on the same examples and with the same loss only. Sharpness depends on the scale of the weights: "
    "a network can be rescaled so that it computes the same, and its eigenvalues and m-sharpness change all the same. "
    "A lower number is evidence for a flatter minimum, not a promise of better accuracy on new data."
)
_CURVATURE = (
    "Eigenvalues of the Hessian, the second derivative of the loss: how fast the gradient changes along a direction. "
    "Cross-entropy flattens by itself as the loss goes to 0, so look at L(w) beside λmax."
)
_NEIGHBORHOOD = (
    "How much the loss rises when the weights move by at most ρ. “Worst” directions are SAM's own first-order step, "
    "so they bound the true maximum from below; the adaptive one measures ρ in units of each weight."
)
_LANDSCAPE = (
    "The loss over a line and a plane of weights, along random directions that are scaled, filter by filter, to each "
    "model's own weights. The models share the random numbers behind their directions."
)
_PAPERS = (
    ("SAM and m-sharpness: Foret et al., 2010.01412", "https://arxiv.org/abs/2010.01412"),
    ("Spectral densities: Ghorbani et al., 1901.10159", "https://arxiv.org/abs/1901.10159"),
    ("Filter normalisation: Li et al., 1712.09913", "https://arxiv.org/abs/1712.09913"),
    ("Adaptive sharpness: Kwon et al., 2102.11600", "https://arxiv.org/abs/2102.11600"),
    ("Sharpness and rescaling: Dinh et al., 1703.04933", "https://arxiv.org/abs/1703.04933"),
)


def check_plotting() -> None:
    """
    For the start of a command, before anything has been computed.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError('pictures need matplotlib: pip install "sam-hf[plot]"')


def draw_pictures(result: Result, folder: str | Path) -> list[Picture]:
    """
    Draw what was measured, each picture as PNG (200 dots an inch) and SVG. What is absent is not drawn.

    Args:
        result (`dict`):
            The content of `sharpness.json`.
        folder (`Path`):
            Where the files go; made if it is not there.

    Returns:
        `list[Picture]`: in the order of the page.

    Raises:
        UsageError: matplotlib is not installed.
        ValueError: `result` is of another version, or holds no model.
    """
    check_plotting()
    from ... import plots

    pictures = []
    models = named(result)
    unit = result.get("settings", {}).get("loss_unit")
    label = f"loss ({unit})" if unit else "loss"
    for draw in (_spectrum, _neighborhoods, _lines, _between, _surfaces):
        for name, title, figure, shows, caution in draw(result, models, label):
            png, svg = plots.save(figure, folder, name)
            pictures.append(Picture(name, title, png, svg, shows, caution))
    return pictures


def write_page(result: Result, pictures: list[Picture], path: str | Path) -> Path:
    """
    Write one HTML file that needs nothing else: the pictures, tables of all numbers, settings and environment.

    Args:
        result (`dict`): the content of `sharpness.json`.
        pictures (`list[Picture]`): what [`draw_pictures`] returned.
        path (`Path`): the file.
    """
    models = named(result)
    title = "Sharpness of " + " and ".join(models)
    examples = result.get("settings", {}).get("examples")
    parts: list[str] = [
        page.paragraph(*([f"Measured on {page.number(examples)} examples. "] if examples else []), _GLANCE),
        page.heading("At a glance"),
        sharpness_tables.glance(models),
    ]
    tables = sharpness_tables
    for key, heading, text, names, make_tables in (
        ("hessian", "Curvature", _CURVATURE, ("spectral_density",), tables.curvature),
        ("neighborhood", "Neighbourhood", _NEIGHBORHOOD, ("m_sharpness_2", "m_sharpness_inf"), tables.neighborhood),
        ("landscape", "Landscape", _LANDSCAPE, ("loss_line", "loss_surface"), tables.landscape),
    ):
        if any(model.get(key) for model in models.values()):
            parts += [page.heading(heading), page.paragraph(text)]
            for picture in pictures:
                if picture.name in names:
                    parts += [page.heading(picture.title, 3), page.figure(picture)]
            parts += make_tables(models)
    if "between" in result:
        parts.append(page.heading("Between the two models"))
        parts += [page.figure(picture) for picture in pictures if picture.name == "loss_between"]
        parts.append(sharpness_tables.between(result["between"]))
    parts.append(page.heading("Settings and environment"))
    parts += [page.facts(result[key], key.capitalize()) for key in ("settings", "environment") if result.get(key)] + [
        page.heading("Papers", 3)
    ]
    parts += [page.paragraph(page.link(text, address)) for text, address in _PAPERS]
    return page.write(path, title, parts)


def _having(models: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """What the models have under `keys`, one inside the other; the models that have it only."""
    found = {}
    for name, model in models.items():
        for key in keys:
            model = (model or {}).get(key)
        if model:
            found[name] = model
    return found


def _spectrum(_result: Result, models: Mapping[str, Any], _label: str):
    from ... import plots

    densities = _having(models, "hessian", "density")
    if not densities:
        return
    eigenvalues = _having({name: models[name] for name in densities}, "hessian", "eigenvalues")
    widths = [density["sigma"] for density in densities.values() if density.get("sigma")]
    ax = plots.draw_spectral_density(
        {name: (density["eigenvalues"], density["density"]) for name, density in densities.items()},
        lambda_max={name: values[0] for name, values in eigenvalues.items()},
        sigma=min(widths, default=None),
    )
    width = f" Peaks are smoothed to σ = {' and '.join(page.number(w, 3) for w in widths)}." if widths else ""
    yield (
        "spectral_density",
        "Spectral density of the Hessian",
        ax.figure,
        "How the eigenvalues of the Hessian are distributed. The area under a curve is 1; vertical lines with a "
        "triangle mark λmax." + width,
        "Read the right end first: a flatter minimum has its last peaks further left. Both axes stretch what is small "
        "(logarithmic; the eigenvalues linear around 0), so heights and widths are no guide to how many eigenvalues "
        "there are. The bulk at 0 is as wide as the smoothing, and the height of a single far peak is uncertain.",
    )


def _neighborhoods(_result: Result, models: Mapping[str, Any], _label: str):
    from ... import plots

    rows = {name: sharpness_tables.rows_with_rho(part) for name, part in _having(models, "neighborhood").items()}
    for p, name, ball in (("2", "2", "Euclidean ball"), ("inf", "inf", "cube")):
        of_p = {model: [row for row in all_rows if str(row["p"]) == p] for model, all_rows in rows.items()}
        of_p = {model: some for model, some in of_p.items() if some}
        if not of_p:
            continue
        radii = {row["rho"] for some in of_p.values() for row in some}
        rho = radii.pop() if len(radii) == 1 else None
        ax = plots.draw_m_sharpness(of_p, p=p, rho=rho)
        yield (
            f"m_sharpness_{name}",
            f"m-sharpness, p = {'∞' if p == 'inf' else p}",
            ax.figure,
            f"The rise of the loss in a {ball} around the weights when each group of m examples picks its own worst "
            "direction: the mean over groups with one standard error, and the worst group.",
            "A direction shared by more examples suits each of them less, so the mean usually falls with m: compare "
            "models at the same m and ρ. "
            "The worst group is a maximum over more groups where m is small. Values of different p have different "
            "balls and cannot be compared.",
        )


def _lines(_result: Result, models: Mapping[str, Any], label: str):
    from ... import plots

    lines = _having(models, "landscape", "line")
    if lines:
        ax = plots.draw_loss_slices({name: (s["x"], s["loss"]) for name, s in lines.items()}, loss=label)
        yield (
            "loss_line",
            "Loss along a line",
            ax.figure,
            "The loss at w + αd for one random direction d; α = 1 moves each filter by its own norm, α = 0 is the "
            "model.",
            "A wider valley is flatter along this direction. It is one direction of millions, and a random one sees "
            "little of the few sharp ones, which are the Hessian's largest eigenvalues.",
        )


def _between(result: Result, models: Mapping[str, Any], label: str):
    from ... import plots

    if "between" in result and len(models) > 1:
        first, second = list(models)[:2]
        between = result["between"]
        ax = plots.draw_loss_between(between["t"], between["loss"], (first, second), loss=label)
        yield (
            "loss_between",
            "Loss between the models",
            ax.figure,
            f"The loss on the straight line from {first} (t = 0) to {second} (t = 1); the dotted line joins its ends.",
            "Where there is no hill between them, both lie in one valley, as finetuned copies of one checkpoint often "
            "do. Which end looks steeper depends on the scale of the weights too, and other directions may differ.",
        )


def _surfaces(_result: Result, models: Mapping[str, Any], label: str):
    from ... import plots
    from ...plots import data as plot_data

    grids = {name: (s["x"], s["y"], s["loss"]) for name, s in _having(models, "landscape", "surface").items()}
    grids = {name: grid for name, grid in grids.items() if plot_data.has_finite(grid[2])}
    if grids:
        drawn = plots.draw_loss_surfaces(grids, loss=label)
        yield (
            "loss_surface",
            "Loss surface",
            drawn[0].figure,
            "The loss at w + αd₁ + βd₂ for two random directions. All panels share one scale and one set of contour "
            "lines; the cross is the model, the triangle the lowest point of the grid.",
            "Wider spacing of the lines is flatter. A plane through millions of dimensions hides most of them, and "
            "the grid sees nothing between its points: a picture to explain a difference with, not to prove one.",
        )

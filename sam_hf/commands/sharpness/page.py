"""The pictures and the HTML page of `sam-hf sharpness`, made from the content of `sharpness.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import plots
from ...errors import UsageError
from ...plots import data as plot_data
from ...reports import page
from . import tables
from .tables import measured_parts, models_by_name

Result = Mapping[str, Any]


def draw_pictures(result: Result, folder: str | Path) -> list[page.Picture]:
    """
    Draw what was measured, each picture as PNG (200 dots per inch) and SVG. What was not measured is not drawn.

    Args:
        result (`dict`): the content of `sharpness.json`.
        folder (`Path`): the folder of the files. It is made if it does not exist.

    Raises:
        UsageError: matplotlib is not installed.
        ValueError: `result` has another version, or holds no model.
    """
    if not page.can_draw():
        raise UsageError(page.PLOTS_ARE_MISSING)
    models = models_by_name(result)
    unit = result.get("settings", {}).get("loss_unit")
    loss = f"loss ({unit})" if unit else "loss"
    axes: dict[str, Any] = {}
    if densities := measured_parts(models, "hessian", "density"):
        eigenvalues = measured_parts({name: models[name] for name in densities}, "hessian", "eigenvalues")
        axes["spectral_density"] = plots.draw_spectral_density(
            {name: (density["eigenvalues"], density["density"]) for name, density in densities.items()},
            lambda_max={name: values[0] for name, values in eigenvalues.items()},
            sigma=min(_smoothing(models), default=None),
        )
    neighborhoods = {n: tables.rows_with_rho(part) for n, part in measured_parts(models, "neighborhood").items()}
    for p in ("2", "inf"):
        rows_of_p = {name: [row for row in rows if row["p"] == p] for name, rows in neighborhoods.items()}
        rows_of_p = {name: rows for name, rows in rows_of_p.items() if rows}
        radii = {row["rho"] for rows in rows_of_p.values() for row in rows}
        if radii:
            rho = radii.pop() if len(radii) == 1 else None
            axes[f"m_sharpness_{p}"] = plots.draw_m_sharpness(rows_of_p, p=p, rho=rho)
    if lines := measured_parts(models, "landscape", "line"):
        axes["loss_line"] = plots.draw_loss_slices({n: (s["x"], s["loss"]) for n, s in lines.items()}, loss=loss)
    if "between" in result and len(models) > 1:
        between, (first, second, *_) = result["between"], models
        axes["loss_between"] = plots.draw_loss_between(between["t"], between["loss"], (first, second), loss=loss)
    surfaces = measured_parts(models, "landscape", "surface")
    surfaces = {n: (s["x"], s["y"], s["loss"]) for n, s in surfaces.items() if plot_data.has_finite(s["loss"])}
    if surfaces:
        axes["loss_surface"] = plots.draw_loss_surfaces(surfaces, loss=loss)[0]
    return page.save_pictures(axes, folder)


def write_page(result: Result, pictures: list[page.Picture], path: str | Path) -> Path:
    """
    Write one HTML file that needs no other file: the pictures, tables of all numbers, settings and environment.

    Args:
        result (`dict`): the content of `sharpness.json`.
        pictures (`list[Picture]`): what [`draw_pictures`] returned.
        path (`Path`): the file.
    """
    models = models_by_name(result)
    examples = result.get("settings", {}).get("examples")
    return page.write(
        path,
        "sharpness.html.j2",
        title="Sharpness of " + " and ".join(models),
        names=list(models),
        pictures={picture.name: picture for picture in pictures},
        examples=page.number(examples) if examples else "",
        glance=tables.glance(models),
        curvature=tables.curvature(models),
        smoothing=[page.number(sigma, 3) for sigma in _smoothing(models)],
        neighborhood=tables.neighborhood(models),
        landscape=measured_parts(models, "landscape"),
        line=tables.line(models),
        surfaces=tables.surfaces(models),
        between=tables.between(result["between"]) if "between" in result else None,
        settings=result.get("settings"),
        environment=result.get("environment"),
    )


def _smoothing(models: tables.Models) -> list[float]:
    """Return the width σ of the peaks of each spectral density that was smoothed."""
    return list(measured_parts(models, "hessian", "density", "sigma").values())

"""The HTML page of `sam-hf sharpness`: its pictures, and tables of every number with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import plots
from ...errors import UsageError
from ...plots import data as plot_data
from ...reports import page
from ...reports.page import Table, measured, number

Result = Mapping[str, Any]
Models = Mapping[str, Mapping[str, Any]]
RowKey = tuple[str, float, float]  # p, ρ and m; 0 where a row has no ρ or no m

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def models_by_name(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """
    Return the models by name. Models with the same name are told apart by a number.

    Raises:
        ValueError: the result has another version, or holds no model.
    """
    if result.get("version") != 1 or not result.get("models"):
        raise ValueError(f"version {result.get('version')!r}: a sharpness.json of version 1 with at least one model")
    models: dict[str, Mapping[str, Any]] = {}
    for model in result["models"]:
        name = base = str(model.get("name") or "model")
        count = 1
        while name in models:
            count += 1
            name = f"{base} ({count})"
        models[name] = model
    return models


def measured_parts(models: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return what each model has under the nested `keys`, without the models that have nothing there."""
    parts = {}
    for name, part in models.items():
        for key in keys:
            part = (part or {}).get(key)
        if part:
            parts[name] = part
    return parts


def rows_with_rho(neighborhood: Mapping[str, Any], kind: str = "m_sharpness") -> list[dict[str, Any]]:
    """Return the rows of a neighborhood with p as text. A row without its own radius gets the common one."""
    rows = neighborhood.get(kind) or ()
    return [{"rho": neighborhood.get("rho"), **row, "p": f"{float(row.get('p', 2)):g}"} for row in rows]


def glance(models: Models, norms: Collection[str] = ("2",)) -> Table:
    """
    Return the main numbers: one row per quantity and one column per model. For two models, the last column is the
    first model's value divided by the second's.

    Args:
        norms (`Collection[str]`, *optional*): the m-sharpness is shown for these p.
    """
    hessians = [model.get("hessian") or {} for model in models.values()]
    quantities: dict[str, list[tuple[Any, Any]]] = {
        label: [(model.get(key), None) for model in models.values()]
        for label, key in (
            ("parameters", "parameters"),
            ("loss L(w)", "loss"),
            ("gradient norm ‖∇L(w)‖₂", "gradient_norm"),
        )
    }
    quantities["λmax"] = [((h.get("eigenvalues") or [None])[0], (h.get("residuals") or [None])[0]) for h in hessians]
    quantities["λ₁/λ₅"] = [(h.get("lambda_ratio"), None) for h in hessians]
    quantities["trace of the Hessian"] = [(h.get("trace"), h.get("trace_error")) for h in hessians]
    for key, rows in _rows_by_key([model.get("neighborhood") or {} for model in models.values()]).items():
        if key[0] in norms:
            quantities[f"m-sharpness, {_label(key)}"] = [(row.get("mean"), row.get("error")) for row in rows]
    ratio = len(models) == 2
    table = [
        [label, *(measured(*value) for value in values), *([_ratio(*values)] if ratio else [])]
        for label, values in quantities.items()
        if any(value is not None for value, _ in values)
    ]
    return Table(["", *models, *(["first / second"] if ratio else [])], table)


def curvature(models: Models) -> Table | None:
    hessians = measured_parts(models, "hessian")
    if not hessians:
        return None
    values = [[*zip(h.get("eigenvalues", ()), h.get("residuals", ()), strict=False)] for h in hessians.values()]
    rows = [
        ["λ" + str(i + 1).translate(_SUBSCRIPTS), *(measured(*v[i]) if i < len(v) else "–" for v in values)]
        for i in range(max(map(len, values)))
    ]
    rows.append(["λ₁/λ₅", *(number(h.get("lambda_ratio")) for h in hessians.values())])
    rows.append(["trace", *(measured(h.get("trace"), h.get("trace_error")) for h in hessians.values())])
    for key, label in (("product", "Hessian-vector product"), ("attention", "attention in products")):
        if any(h.get(key) for h in hessians.values()):
            rows.append([label, *(str(h.get(key) or "–").replace("_", " ") for h in hessians.values())])
    return Table(["", *hessians], rows)


def neighborhood(models: Models) -> dict[str, Table]:
    """Return one table per kind of measurement, of the kinds that were measured."""
    parts = measured_parts(models, "neighborhood")
    header = ["", *(column for name in parts for column in (f"{name}: mean", "worst"))]
    tables = {}
    for kind in ("m_sharpness", "adaptive", "random") if parts else ():
        rows = [
            [_label(key), *(cell for row in rows for cell in _mean_and_worst(row))]
            for key, rows in _rows_by_key(list(parts.values()), kind).items()
        ]
        tables[kind] = Table(header, rows)
    return tables


def line(models: Models) -> Table:
    lines = measured_parts(models, "landscape", "line")
    losses = [dict(zip(line["x"], line["loss"], strict=True)) for line in lines.values()]
    points = sorted(set().union(*losses))
    return Table(["α", *lines], [[number(x), *(number(loss.get(x), 6) for loss in losses)] for x in points])


def surfaces(models: Models) -> dict[str, Table]:
    return {
        name: Table(
            ["α \\ β", *map(number, surface["y"])],
            [[number(x), *map(number, losses)] for x, losses in zip(surface["x"], surface["loss"], strict=True)],
        )
        for name, surface in measured_parts(models, "landscape", "surface").items()
    }


def between(values: Mapping[str, Sequence[float]]) -> Table:
    rows = [[number(t), number(loss, 6)] for t, loss in zip(values["t"], values["loss"], strict=True)]
    return Table(["t", "loss"], rows)


def _rows_by_key(
    neighborhoods: Sequence[Mapping[str, Any]], kind: str = "m_sharpness"
) -> dict[RowKey, list[dict[str, Any]]]:
    """Return, for each p, ρ and m that was measured, one row per model; an empty one where a model has none."""
    rows_by_key = [
        {(row["p"], row.get("rho") or 0, row.get("m") or 0): row for row in rows_with_rho(part, kind)}
        for part in neighborhoods
    ]
    return {key: [rows.get(key, {}) for rows in rows_by_key] for key in sorted(set().union(*rows_by_key))}


def _label(key: RowKey) -> str:
    p, rho, m = key
    parts = [f"p = {'∞' if p == 'inf' else p}", *([f"ρ = {number(rho)}"] if rho else []), *([f"m = {m}"] if m else [])]
    return ", ".join(parts)


def _mean_and_worst(row: Mapping[str, Any]) -> tuple[str, str]:
    return measured(row.get("mean"), row.get("error")), number(row.get("max"))


def _ratio(first: tuple[Any, Any], second: tuple[Any, Any]) -> str:
    """Return the ratio of two values with the error that follows from theirs, or a dash unless both are positive."""
    (a, error_a), (b, error_b) = first, second
    if not all(isinstance(v, float) and math.isfinite(v) and v > 0 for v in (a, b)):
        return "–"
    errors = [float(e) for e in (error_a, error_b) if isinstance(e, int | float) and math.isfinite(e)]
    relative = math.hypot(errors[0] / a, errors[1] / b) if len(errors) == 2 else 0
    return measured(a / b, a / b * relative) if relative > 1e-3 else number(a / b, 3)


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
    neighborhoods = {n: rows_with_rho(part) for n, part in measured_parts(models, "neighborhood").items()}
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
        glance=glance(models),
        curvature=curvature(models),
        smoothing=[page.number(sigma, 3) for sigma in _smoothing(models)],
        neighborhood=neighborhood(models),
        landscape=measured_parts(models, "landscape"),
        line=line(models),
        surfaces=surfaces(models),
        between=between(result["between"]) if "between" in result else None,
        settings=result.get("settings"),
        environment=result.get("environment"),
    )


def _smoothing(models: Models) -> list[float]:
    """Return the width σ of the peaks of each spectral density that was smoothed."""
    return list(measured_parts(models, "hessian", "density", "sigma").values())

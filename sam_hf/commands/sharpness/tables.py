"""The tables of the page of `sam-hf sharpness`: every number of `sharpness.json` with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...reports import page
from ...reports.page import measured, number

Models = Mapping[str, Mapping[str, Any]]

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def named(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """
    The models by name, told apart by a number where two have the same.

    Raises:
        ValueError: the result is of another version, or holds no model.
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


def rows_with_rho(neighborhood: Mapping[str, Any], kind: str = "m_sharpness") -> list[dict[str, Any]]:
    """Rows of a neighbourhood, p as text; those without a radius of their own have the common one."""
    rows = neighborhood.get(kind) or ()
    return [{"rho": neighborhood.get("rho"), **row, "p": f"{float(row.get('p', 2)):g}"} for row in rows]


def glance(models: Models) -> page.Html:
    """A row a quantity, a column a model; of two models also the first's share of the second's."""
    hessians = [model.get("hessian") or {} for model in models.values()]
    rows: list[tuple[str, list[tuple[Any, Any]]]] = [
        ("parameters", [(model.get("parameters"), None) for model in models.values()]),
        ("loss L(w)", [(model.get("loss"), None) for model in models.values()]),
        ("gradient norm ‖∇L(w)‖₂", [(model.get("gradient_norm"), None) for model in models.values()]),
        ("λmax", [(_first(h.get("eigenvalues")), _first(h.get("residuals"))) for h in hessians]),
        ("λ₁/λ₅", [(h.get("lambda_ratio"), None) for h in hessians]),
        ("trace of the Hessian", [(h.get("trace"), h.get("trace_error")) for h in hessians]),
    ]
    by_key = [
        {_key(row): row for row in rows_with_rho(model.get("neighborhood") or {}) if row["p"] == "2"}
        for model in models.values()
    ]
    for key in _keys(by_key):
        found = [of_model.get(key, {}) for of_model in by_key]
        rows.append((f"m-sharpness, {_said(key)}", [(row.get("mean"), row.get("error")) for row in found]))
    both = len(models) == 2
    table = [
        [label, *(measured(*value) for value in values), *([_share(*values)] if both else [])]
        for label, values in rows
        if any(value is not None for value, _ in values)
    ]
    note = "± is one standard error"
    note += "; of λmax the residual: an eigenvalue is at most that far away." if any(hessians) else "."
    if both:
        note += " In the last column the two are taken as independent: cautious, as they saw the same examples."
    return page.table(["", *models, *(["first / second"] if both else [])], table, note)


def curvature(models: Models) -> list[page.Html]:
    hessians = {name: m["hessian"] for name, m in models.items() if m.get("hessian")}
    values = [[*zip(h.get("eigenvalues", ()), h.get("residuals", ()), strict=False)] for h in hessians.values()]
    count = max(map(len, values))
    rows: list[list[Any]] = [
        ["λ" + str(i + 1).translate(_SUBSCRIPTS), *(measured(*v[i]) if i < len(v) else "–" for v in values)]
        for i in range(count)
    ]
    of_all = hessians.values()
    rows.append(["λ₁/λ₅", *(number(h.get("lambda_ratio")) for h in of_all)])
    rows.append(["trace", *(measured(h.get("trace"), h.get("trace_error")) for h in of_all)])
    for key, label in (("product", "Hessian-vector product"), ("attention", "attention in products")):
        if any(h.get(key) for h in of_all):
            rows.append([label, *(str(h.get(key) or "–").replace("_", " ") for h in of_all)])
    note = "Eigenvalues, in loss per squared unit of weight, ± their residual; the trace ± one standard error."
    return [page.table(["", *hessians], rows, note)]


def neighborhood(models: Models) -> list[page.Html]:
    parts = {name: m["neighborhood"] for name, m in models.items() if m.get("neighborhood")}
    header = [column for name in parts for column in (f"{name}: mean", "worst")]
    tables = []
    for kind, caption in (
        ("m_sharpness", "m-sharpness, in units of the loss: the mean over groups ± one standard error, and the worst"),
        ("adaptive", "Adaptive sharpness: ρ in units of each weight"),
        ("random", "Random directions of length ρ: what a step of that length does that does not look for the worst"),
    ):
        by_key = [{_key(row): row for row in rows_with_rho(part, kind)} for part in parts.values()]
        rows = [
            [_said(key), *(cell for of_model in by_key for cell in _mean_and_worst(of_model.get(key, {})))]
            for key in _keys(by_key)
        ]
        if rows:
            tables.append(page.table(["", *header], rows, caption))
    return tables


def landscape(models: Models) -> list[page.Html]:
    parts = []
    lines = {n: m["landscape"]["line"] for n, m in models.items() if (m.get("landscape") or {}).get("line")}
    if lines:
        at = [dict(zip(line["x"], line["loss"], strict=True)) for line in lines.values()]
        rows = [[number(x), *(number(of_model.get(x), 6) for of_model in at)] for x in sorted(set().union(*at))]
        parts.append(page.details("The loss along the line, in numbers", page.table(["α", *lines], rows)))
    for name, model in models.items():
        surface = (model.get("landscape") or {}).get("surface")
        if surface:
            rows = [
                [number(x), *(number(v, 4) for v in values)]
                for x, values in zip(surface["x"], surface["loss"], strict=True)
            ]
            table = page.table(["α \\ β", *(number(y) for y in surface["y"])], rows)
            parts.append(page.details(f"The loss surface of {name}, in numbers", table))
    return parts


def between(values: Mapping[str, Sequence[float]]) -> page.Html:
    rows = [[number(t), number(loss, 6)] for t, loss in zip(values["t"], values["loss"], strict=True)]
    return page.details("The loss between the models, in numbers", page.table(["t", "loss"], rows))


def _first(values: Sequence[float] | None) -> float | None:
    return values[0] if values else None


def _key(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """p, ρ and m of a row; 0 where it has none."""
    return row["p"], row.get("rho") or 0, row.get("m") or 0


def _keys(by_key: Sequence[Mapping[tuple[str, float, float], Any]]) -> list[tuple[str, float, float]]:
    return sorted(set().union(*by_key))


def _said(key: tuple[str, float, float]) -> str:
    p, rho, m = key
    said = [f"p = {'∞' if p == 'inf' else p}", *([f"ρ = {number(rho)}"] if rho else []), *([f"m = {m}"] if m else [])]
    return ", ".join(said)


def _mean_and_worst(row: Mapping[str, Any]) -> tuple[str, str]:
    return measured(row.get("mean"), row.get("error")), number(row.get("max"))


def _share(first: tuple[Any, Any], second: tuple[Any, Any]) -> str:
    """Of two positive numbers, with what their errors make of it; anything else has no share that says something."""
    (a, error_a), (b, error_b) = first, second
    if not all(isinstance(v, float) and math.isfinite(v) and v > 0 for v in (a, b)):
        return "–"
    errors = [float(e) for e in (error_a, error_b) if isinstance(e, int | float) and math.isfinite(e)]
    relative = math.hypot(errors[0] / a, errors[1] / b) if len(errors) == 2 else 0
    return measured(a / b, a / b * relative) if relative > 1e-3 else number(a / b, 3)

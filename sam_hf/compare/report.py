"""The HTML page of a comparison: what can be said, tables, pictures, the search, settings and machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..reports import page
from ..reports.page import Table
from . import pictures
from .plan import Plan, describe, percent
from .records import Records
from .search import Candidate
from .statistics import Difference, verdict
from .summary import Row
from .table import Format, shared_content


def write_report(plan: Plan, rows: list[Row], candidates: list[Candidate], records: Records, folder: Path) -> Path:
    """
    Write `folder/compare.html` and, if matplotlib is installed, its pictures in `folder/pictures` as PNG and SVG.
    """
    axes = _draw(plan, rows) if page.can_draw() and rows else {}
    named_by_user = [name for name, variant in plan.variants.items() if not variant.made]
    return page.write(
        folder / "compare.html",
        "comparison.html.j2",
        title=f"{plan.metric}, {plan.recipe}: {', '.join(named_by_user)}",
        plan=plan,
        unit_of_differences=Format(plan.metric).unit_of_differences,
        glance=_glance(plan, rows),
        failed=sum(len(row.failed) for row in rows),
        pictures={picture.name: picture for picture in page.save_pictures(axes, folder / "pictures")},
        environment=_environment(plan, records),
        **shared_content(plan, rows, candidates),
        **_settings(plan),
    )


def _glance(plan: Plan, rows: list[Row]) -> dict[str, Table]:
    """Return, for each opponent, the differences only: one row per variant and one column per noise rate."""
    show, tables = Format(plan.metric), {}
    for kind, opponent in (("against_baseline", plan.baseline), ("at_equal_compute", _longer_baseline(plan))):
        lines = []
        for name in plan.variants:
            by_noise = {row.label_noise: getattr(row, kind)["final"] for row in rows if row.variant == name}
            if any(by_noise.values()):
                lines.append([name, *(_marked(plan, show, by_noise.get(noise)) for noise in plan.label_noise)])
        if lines:
            tables[opponent] = Table(["label noise", *(percent(noise) for noise in plan.label_noise)], lines)
    return tables


def _marked(plan: Plan, show: Format, difference: Difference | None) -> str:
    if difference is None:
        return "–"
    marks = {"better": " ▲", "worse": " ▼"}
    return show.signed(difference.mean) + marks.get(verdict(difference, plan.greater_is_better), "")


def _draw(plan: Plan, rows: list[Row]) -> dict[str, Any]:
    """Return the Axes of each picture, by the picture's name."""
    show, axes = Format(plan.metric), {}
    metric = f"{plan.metric} ({show.unit}), final epoch" if show.is_share else f"{plan.metric}, final epoch"
    rows_of = {noise: [row for row in rows if row.label_noise == noise] for noise in plan.label_noise}
    panels = {
        f"label noise {percent(noise)}": rows_of_noise for noise, rows_of_noise in rows_of.items() if rows_of_noise
    }
    if len(panels) > 1:
        samples: dict[str, dict[float, Any]] = {row.variant: {} for row in rows}
        for row in rows:
            samples[row.variant][row.label_noise] = row.samples["final"]
        axes["against_noise"] = pictures.draw_against_noise(samples, metric=metric, factor=show.factor)
    differences = {title: _opponents(plan, rows_of_panel) for title, rows_of_panel in panels.items()}
    differences = {title: by_variant for title, by_variant in differences.items() if by_variant}
    if differences:
        xlabel = f"difference at the final epoch ({show.unit_of_differences})"
        axes["differences"] = pictures.draw_differences(differences, xlabel=xlabel, factor=show.factor)
    reached = {
        title: {row.variant: (row.compute, row.samples["final"]) for row in rows_of_panel}
        for title, rows_of_panel in panels.items()
    }
    counts_updates = any("max_steps" in variant.options for variant in plan.variants.values())
    unit = f"{'updates' if counts_updates else 'epochs'} × passes per update"
    axes["against_compute"] = pictures.draw_against_compute(reached, metric=metric, unit=unit, factor=show.factor)
    return axes


def _opponents(plan: Plan, rows: list[Row]) -> dict[str, dict[str, Difference]]:
    """Return the differences of each variant by the opponent that is subtracted, without variants that have none."""
    opponents = {}
    for row in rows:
        differences = {
            f"minus {plan.baseline}": row.against_baseline["final"],
            f"minus {_longer_baseline(plan)}": row.at_equal_compute["final"],
        }
        opponents[row.variant] = {name: difference for name, difference in differences.items() if difference}
    return {variant: differences for variant, differences in opponents.items() if differences}


def _longer_baseline(plan: Plan) -> str:
    """Return the name of the longer baseline if there is one only; otherwise variants have different opponents."""
    names = {name for twins in plan.twins.values() for name in twins if name is not None}
    return names.pop() if len(names) == 1 else f"{plan.baseline} at equal compute"


def _settings(plan: Plan) -> dict[str, Any]:
    shared, own = _shared([variant.options for variant in plan.variants.values()])
    settings = {
        "recipe": plan.recipe,
        "metric": plan.metric,
        "seeds": ", ".join(map(str, plan.seeds)),
        "label noise": ", ".join(percent(noise) for noise in plan.label_noise),
    }
    variants = {
        name: describe(options) or "no option of its own" for name, options in zip(plan.variants, own, strict=True)
    }
    for name, variant in plan.variants.items():
        if len(variant.grid) > 1:
            variants[name] += f"; one of {' | '.join(describe(choice) for choice in variant.grid)}"
    return {"settings": settings, "variants": variants, "shared_options": shared}


def _environment(plan: Plan, records: Records) -> dict[str, Any]:
    """Return the machines and versions of the finished runs, each value once."""
    runs = [*plan.selection_runs(), *plan.final_runs({})]
    environments = [record["environment"] for run in runs if (record := records.finished(run)) is not None]
    if not environments:
        return {}
    shared, own = _shared(environments)
    different: dict[str, set[str]] = {}
    for key, value in (item for environment in own for item in environment.items()):
        different.setdefault(key, set()).add(str(value))
    return {**shared, **{key: " | ".join(sorted(values)) for key, values in different.items()}}


def _shared(options: list[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Split options into those that all have with the same value, and what else each of them has."""
    first = options[0]
    shared = {key: value for key, value in first.items() if all(key in o and o[key] == value for o in options)}
    return shared, [{key: value for key, value in o.items() if key not in shared} for o in options]

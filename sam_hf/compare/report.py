"""The HTML page of a comparison: what can be said, tables, pictures, the search, settings and machines."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from ..reports import page
from ..reports.page import Html, Picture
from . import table
from .plan import Plan, describe
from .records import Records
from .search import Candidate
from .statistics import Difference, verdict
from .summary import Row
from .table import Format

_READ = (
    "Runs with the same seed start from the same weights and see the same wrong labels and order of examples, so "
    "variants are compared seed by seed. A difference counts as better or worse only if its p-value, adjusted for the "
    "number of comparisons on this page, is below 0.05."
)


def write_report(plan: Plan, rows: list[Row], candidates: list[Candidate], records: Records, folder: Path) -> Path:
    """
    Write `folder/compare.html`, and where matplotlib is installed its pictures in `folder/pictures`, PNG and SVG.
    """
    pictures = _pictures(plan, rows, folder / "pictures") if find_spec("matplotlib") and rows else []
    title = f"{plan.metric}, {plan.recipe}: {', '.join(name for name, v in plan.variants.items() if not v.made)}"
    parts: list[str] = [page.paragraph(_READ), page.heading("At a glance"), *_glance(plan, rows)]
    for picture in pictures:
        parts += [page.heading(picture.title), page.figure(picture)]
    if not pictures:
        parts.append(page.paragraph('Pictures need matplotlib: pip install "sam-hf[plot]"', soft=True))
    for noise in plan.label_noise:
        here = [row for row in rows if row.label_noise == noise]
        if here:
            parts.append(page.heading(f"Label noise {noise:.0%}"))
            parts.append(page.table(table.result_heads(plan), table.results(plan, here)))
            parts.append(page.table(table.difference_heads(), table.differences(plan, here), "Paired differences"))
    parts += [page.paragraph(note, soft=True) for note in table.notes(plan, rows)]
    parts += _search(plan, candidates)
    parts += [page.heading("Settings"), *_settings(plan)]
    parts += [page.heading("Machines and versions"), *_environments(plan, records)]
    return page.write(folder / "compare.html", title, parts)


def _glance(plan: Plan, rows: list[Row]) -> list[Html]:
    """Differences only, a line a variant and a column a noise rate."""
    show, parts = Format(plan.metric), []
    rates = [f"{noise:.0%}" for noise in plan.label_noise]
    for kind, caption in (
        ("against_baseline", f"Final epoch, minus {plan.baseline}"),
        ("at_equal_compute", f"Final epoch, minus {_longer_baseline(plan)}"),
    ):
        lines = []
        for name in plan.variants:
            found = {row.label_noise: getattr(row, kind)["final"] for row in rows if row.variant == name}
            if any(found.values()):
                lines.append([name, *(_marked(plan, show, found.get(noise)) for noise in plan.label_noise)])
        if lines:
            unit = "points" if show.is_share else plan.metric
            parts.append(page.table(["label noise", *rates], lines, f"{caption} ({unit}; ▲ better, ▼ worse)"))
    failed = sum(len(row.failed) for row in rows)
    if failed:
        parts.append(page.paragraph(f"{failed} runs failed and are left out; their records say why."))
    return parts


def _marked(plan: Plan, show: Format, difference: Difference | None) -> str:
    if difference is None:
        return "–"
    marks = {"better": " ▲", "worse": " ▼"}
    return show.signed(difference.mean) + marks.get(verdict(difference, plan.greater_is_better), "")


def _pictures(plan: Plan, rows: list[Row], folder: Path) -> list[Picture]:
    from .. import plots
    from . import pictures

    show = Format(plan.metric)
    label = f"{plan.metric} ({show.unit}), final epoch" if show.is_share else f"{plan.metric}, final epoch"
    names = list(dict.fromkeys(row.variant for row in rows))
    drawn = []
    if len({row.label_noise for row in rows}) > 1:
        samples = {n: {row.label_noise: row.samples["final"] for row in rows if row.variant == n} for n in names}
        ax = pictures.draw_against_noise(samples, metric=label, factor=show.factor)
        drawn.append(
            (
                "against_noise",
                "Against label noise",
                ax,
                "Mean over seeds at the final epoch; bars are one standard deviation. Variants stand side by side at "
                "each noise rate, and lines only lead the eye.",
                "Overlapping bars do not mean that there is no difference: seeds are paired. See the differences.",
            )
        )
    differences = _differences(plan, rows)
    if differences:
        unit = "points" if show.is_share else plan.metric
        ax = pictures.draw_differences(
            differences, xlabel=f"difference at the final epoch ({unit})", factor=show.factor
        )
        drawn.append(
            (
                "differences",
                "Paired differences",
                ax,
                "Each variant minus its opponent, seed by seed: the mean and its 95% confidence interval. Filled: "
                "significant after Holm's adjustment; hollow: not.",
                "Intervals are not adjusted for the number of comparisons, so a hollow one may leave out 0. "
                + ("Right of the line is better." if plan.greater_is_better else "Left of the line is better."),
            )
        )
    panels = {
        f"label noise {noise:.0%}": {
            row.variant: (row.compute, row.samples["final"]) for row in rows if row.label_noise == noise
        }
        for noise in plan.label_noise
        if any(row.label_noise == noise for row in rows)
    }
    ax = pictures.draw_against_compute(panels, metric=label, unit=_unit_of_compute(plan), factor=show.factor)
    drawn.append(
        (
            "against_compute",
            "Against compute",
            ax,
            "What each variant reached over what it cost, a pass over all training examples being one. Bars are one "
            "standard deviation over seeds.",
            "Passes are counted from the options, not timed; the tables have the time.",
        )
    )
    return [
        Picture(name, title, *plots.save(cast(Any, ax.figure), folder, name), shows, caution)
        for name, title, ax, shows, caution in drawn
    ]


def _differences(plan: Plan, rows: list[Row]) -> dict[str, dict[str, dict[str, Difference]]]:
    panels: dict[str, dict[str, dict[str, Difference]]] = {}
    for row in rows:
        found = {
            f"minus {plan.baseline}": row.against_baseline["final"],
            f"minus {_longer_baseline(plan)}": row.at_equal_compute["final"],
        }
        known = {opponent: difference for opponent, difference in found.items() if difference is not None}
        if known:
            panels.setdefault(f"label noise {row.label_noise:.0%}", {})[row.variant] = known
    return panels


def _longer_baseline(plan: Plan) -> str:
    """By its name where there is one alone: of the variants that it is compared with some may have taken less."""
    names = {name for twins in plan.twins.values() for name in twins if name is not None}
    return names.pop() if len(names) == 1 else f"{plan.baseline} at equal compute"


def _unit_of_compute(plan: Plan) -> str:
    counts_updates = any("max_steps" in variant.options for variant in plan.variants.values())
    return f"{'updates' if counts_updates else 'epochs'} × passes an update"


def _search(plan: Plan, candidates: list[Candidate]) -> list[Html]:
    if plan.select is None or not candidates:
        return []
    before, after = table.search_notes(plan, candidates)
    return [
        page.heading("Search"),
        page.paragraph(before),
        page.table(table.search_heads(plan), table.search_rows(plan, candidates)),
        *(page.paragraph(line, soft=True) for line in after),
    ]


def _settings(plan: Plan) -> list[Html]:
    shared, own = _shared([variant.options for variant in plan.variants.values()])
    facts: dict[str, Any] = {
        "recipe": plan.recipe,
        "metric": plan.metric,
        "seeds": ", ".join(map(str, plan.seeds)),
        "label noise": ", ".join(f"{noise:.0%}" for noise in plan.label_noise),
    }
    of_variants = {
        name: describe(options) or "nothing of its own" for name, options in zip(plan.variants, own, strict=True)
    }
    for name, variant in plan.variants.items():
        if len(variant.grid) > 1:
            of_variants[name] += f"; one of {' | '.join(describe(choice) for choice in variant.grid)}"
    return [
        page.facts(facts),
        page.facts(of_variants, "Options of each variant"),
        page.details("Options that all variants share", page.facts(shared)),
    ]


def _environments(plan: Plan, records: Records) -> list[Html]:
    runs = [*plan.selection_runs(), *plan.final_runs({})]
    seen = [record["environment"] for run in runs if (record := records.finished(run)) is not None]
    if not seen:
        return []
    shared, own = _shared(seen)
    different = {key: sorted({str(one.get(key)) for one in own if key in one}) for one in own for key in one}
    return [page.facts({**shared, **{key: " | ".join(values) for key, values in different.items()}})]


def _shared(options: list[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all have with the same value, and what each has beyond that."""
    first = options[0]
    shared = {key: value for key, value in first.items() if all(key in o and o[key] == value for o in options)}
    return shared, [{key: value for key, value in o.items() if key not in shared} for o in options]

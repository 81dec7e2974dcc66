"""The tables of a comparison as text, and the Markdown for the terminal and for `OUT/table.md`."""

from __future__ import annotations

from typing import Any

from ..reports.page import Table, render
from .plan import Plan, describe, percent
from .search import Candidate
from .statistics import Difference, Sample, verdict
from .summary import Row, comparisons

_SHARES = ("accuracy", "f1", "precision", "recall")


class Format:
    """The numbers of the plan's metric as text: shares in percent and points, others as they are."""

    def __init__(self, metric: str):
        self.is_share = any(word in metric for word in _SHARES)
        self.factor = 100 if self.is_share else 1
        self.digits = 1 if self.is_share else 4
        self.unit = "%" if self.is_share else metric
        self.unit_of_differences = "points" if self.is_share else metric

    def value(self, value: float) -> str:
        return f"{self.factor * value:.{self.digits}f}"

    def sample(self, sample: Sample) -> str:
        if sample.mean is None:
            return "none"
        spread = "" if sample.deviation is None else f" ± {self.value(sample.deviation)}"
        return self.value(sample.mean) + spread

    def difference(self, difference: Difference | None) -> str:
        if difference is None:
            return ""
        if difference.low is None or difference.high is None:
            return self.signed(difference.mean)
        return f"{self.signed(difference.mean)} [{self.signed(difference.low)}, {self.signed(difference.high)}]"

    def signed(self, value: float) -> str:
        return f"{self.factor * value:+.{self.digits + self.is_share}f}".replace("-", "−")


def markdown(plan: Plan, rows: list[Row], candidates: list[Candidate]) -> str:
    content = shared_content(plan, rows, candidates)
    return render("comparison.md.j2", plan=plan, **content).rstrip() + "\n"


def shared_content(plan: Plan, rows: list[Row], candidates: list[Candidate]) -> dict[str, Any]:
    """Return what the Markdown and the HTML page both show, for their templates."""
    by_noise = {noise: [row for row in rows if row.label_noise == noise] for noise in plan.label_noise}
    return {
        "tables": {
            percent(noise): (_results(plan, rows_of_noise), _differences(plan, rows_of_noise))
            for noise, rows_of_noise in by_noise.items()
            if rows_of_noise
        },
        "comparisons": comparisons(rows),
        "diverged": sum(len(row.diverged) for row in rows),
        "select": plan.select if candidates else None,
        "search": _search(plan, candidates),
        "at_edges": _at_edges(plan, candidates),
    }


def _results(plan: Plan, rows: list[Row]) -> Table:
    show = Format(plan.metric)
    header = ["variant", "n", f"final epoch ({show.unit})", f"best epoch ({show.unit})", "compute", "seconds"]
    lines = [
        [
            row.variant + (f" ({describe(row.choice)})" if row.choice else ""),
            _count(row),
            show.sample(row.samples["final"]),
            show.sample(row.samples["best"]),
            f"{row.compute:g}",
            _number(row.seconds, ".1f"),
            _number(row.time_ratio, ".2f"),
            _memory(row),
        ]
        for row in rows
    ]
    return Table([*header, f"× {plan.baseline}", "peak memory"], lines)


def _differences(plan: Plan, rows: list[Row]) -> Table:
    """Return the differences from the baseline as it was written, then those at equal compute."""
    show, lines = Format(plan.metric), []
    for kind in ("against_baseline", "at_equal_compute"):
        for row in rows:
            final, best = getattr(row, kind)["final"], getattr(row, kind)["best"]
            if final is not None:
                lines.append(
                    [
                        row.variant,
                        plan.baseline if kind == "against_baseline" else f"{row.twin} (equal compute)",
                        verdict(final, plan.greater_is_better),
                        *(show.difference(final), _p(final.p), _p(final.adjusted_p), _pairs(plan, final)),
                        *(show.difference(best), _p(best.adjusted_p if best else None)),
                    ]
                )
    header = ["variant", "minus", "verdict", "final epoch [95%]", "p", "p by Holm", "pairs"]
    return Table([*header, "best epoch [95%]", "p by Holm"], lines)


def _count(row: Row) -> str:
    """Return the number of values in the mean, and how many seeds failed or diverged."""
    lost = [f"{len(seeds)} {what}" for what, seeds in (("failed", row.failed), ("diverged", row.diverged)) if seeds]
    return f"{row.samples['final'].n}" + (f" ({', '.join(lost)})" if lost else "")


def _pairs(plan: Plan, difference: Difference) -> str:
    whole = len(plan.seeds)
    return str(difference.n) if difference.n == whole else f"{difference.n} of {whole}"


def _search(plan: Plan, candidates: list[Candidate]) -> Table:
    show, rows = Format(plan.metric), []
    for c in candidates:
        seeds = len(plan.select.seeds) if plan.select is not None else 0
        unknown = "diverged" if len(c.scores) == seeds else f"{len(c.scores)} of {seeds} runs"
        score = unknown if c.score is None else show.value(c.score)
        rows.append([c.variant, percent(c.label_noise), describe(c.choice), score, "yes" if c.chosen else ""])
    return Table(["variant", "label noise", "choice", f"{plan.metric}, mean", "chosen"], rows)


def _at_edges(plan: Plan, candidates: list[Candidate]) -> list[str]:
    """Name the chosen values at an end of their grid: a better value may lie outside of the grid."""
    return [
        f"The search chose {key}={value} for {c.variant} at label noise {percent(c.label_noise)}. This is an end of "
        "its grid: a better value may lie outside of it."
        for c in candidates
        if c.chosen
        for key, value in c.choice.items()
        if _is_edge(value, [choice[key] for choice in plan.variants[c.variant].grid])
    ]


def _is_edge(value: Any, values: list[Any]) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and len(set(values)) > 1 and value in (min(values), max(values))


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value, ".3f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _memory(row: Row) -> str:
    if row.memory is None:
        return ""
    return f"{row.memory / 2**20:,.0f} MiB" + (" (process)" if row.memory_kind == "resident" else "")

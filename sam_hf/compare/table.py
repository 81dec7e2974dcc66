"""The result as Markdown, for the terminal and for `OUT/table.md`."""

from __future__ import annotations

from typing import Any

from .plan import Plan, describe
from .search import Candidate
from .statistics import Difference, Sample, verdict
from .summary import Row, comparisons

_SHARES = ("accuracy", "f1", "precision", "recall")


class Format:
    """
    Numbers of the plan's metric as text: shares in percent and points, others as they are.
    """

    def __init__(self, metric: str):
        self.is_share = any(word in metric for word in _SHARES)
        self.factor = 100 if self.is_share else 1
        self.digits = 1 if self.is_share else 4
        self.unit = "%" if self.is_share else metric

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
        digits = self.digits + 1 if self.is_share else self.digits
        numbers = [difference.mean, difference.low, difference.high]
        mean, low, high = (None if n is None else f"{self.factor * n:+.{digits}f}" for n in numbers)
        return f"{mean}" + (f" [{low}, {high}]" if low is not None else "")


def markdown(plan: Plan, rows: list[Row], candidates: list[Candidate]) -> str:
    """A table a noise rate, what the differences allow to say, and the search."""
    parts = [f"# {plan.metric} of {plan.recipe}: {len(plan.variants)} variants against {plan.baseline}", ""]
    for noise in plan.label_noise:
        here = [row for row in rows if row.label_noise == noise]
        if here:
            parts += [f"## Label noise {noise:.0%}", "", *_table(plan, here), ""]
    return "\n".join([*parts, *_notes(plan, rows), "", *_search(plan, candidates)]).rstrip() + "\n"


def _table(plan: Plan, rows: list[Row]) -> list[str]:
    show = Format(plan.metric)
    has_twins = any(row.twin is not None for row in rows)
    heads = ["variant", "n", f"final epoch ({show.unit})", f"best epoch ({show.unit})"]
    heads += [f"final epoch − {plan.baseline}", "p (Holm)", "verdict"]
    if has_twins:
        heads += ["final epoch − equal compute", "p (Holm)", "verdict"]
    heads += ["compute", "seconds", "× baseline", "peak memory"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row_name(row), f"{len(row.seeds)}" + (f" ({len(row.failed)} failed)" if row.failed else "")]
        cells += [show.sample(row.samples["final"]), show.sample(row.samples["best"])]
        cells += _cells(show, plan, row.against_baseline["final"])
        if has_twins:
            cells += _cells(show, plan, row.at_equal_compute["final"])
        cells += [f"{row.compute:g}", _number(row.seconds, ".1f"), _number(row.time_ratio, ".2f"), _memory(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def row_name(row: Row) -> str:
    return row.variant + (f" ({describe(row.choice)})" if row.choice else "")


def _cells(show: Format, plan: Plan, difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", "", ""]
    p = "" if difference.adjusted_p is None else f"{difference.adjusted_p:.3f}"
    return [show.difference(difference), p, verdict(difference, plan.greater_is_better)]


def _notes(plan: Plan, rows: list[Row]) -> list[str]:
    count = comparisons(rows)
    notes = [
        "mean ± standard deviation over seeds. Differences are paired by seed, with their 95% confidence intervals "
        f"(Student's t) in square brackets; p of the paired t test is adjusted by Holm's method over all {count} "
        "comparisons above. `better` and `worse`: adjusted p below 0.05. Everything else is no evidence of a "
        "difference, nor of there being none.",
        "",
        "The best epoch is chosen on the very examples that it is reported on, so it flatters every variant. compute: "
        "epochs (updates, where max_steps is given) × passes an update. seconds: median time of training with its "
        "evaluations; runs that share a machine slow each other.",
    ]
    twins = {row.twin for row in rows if row.twin is not None}
    if twins:
        notes += ["", f"At equal compute, {plan.baseline} is {' or '.join(sorted(twins))}, whichever cost the same."]
    return notes


def _search(plan: Plan, candidates: list[Candidate]) -> list[str]:
    if plan.select is None or not candidates:
        return []
    show = Format(plan.metric)
    lines = [
        "## Search",
        "",
        f"On {plan.select.percentage}% of the training examples, which these runs did not train on (their labels as "
        f"noisy as the others), seeds {', '.join(map(str, plan.select.seeds))}, final epoch. "
        "The test set was not read.",
        "",
        f"| label noise | variant | choice | {plan.metric}, mean | chosen |",
        "|---|---|---|---|---|",
    ]
    for c in candidates:
        score = f"{len(c.scores)} of {len(plan.select.seeds)} runs" if c.score is None else show.value(c.score)
        chosen = "yes" if c.chosen else ""
        lines.append(f"| {c.label_noise:.0%} | {c.variant} | {describe(c.choice)} | {score} | {chosen} |")
    edges = _at_edges(plan, candidates)
    return [*lines, "", *edges] if edges else lines


def _at_edges(plan: Plan, candidates: list[Candidate]) -> list[str]:
    """A choice at the end of its grid: the best value may lie outside."""
    lines = []
    for c in candidates:
        for key, value in c.choice.items():
            values = [choice[key] for choice in plan.variants[c.variant].grid]
            if c.chosen and _is_number(value) and len(set(values)) > 1 and value in (min(values), max(values)):
                lines.append(
                    f"{c.variant} at label noise {c.label_noise:.0%} took {key}={value}, an end of its grid: "
                    "a better one may lie beyond."
                )
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _memory(row: Row) -> str:
    if row.memory is None:
        return ""
    return f"{row.memory / 2**20:,.0f} MiB" + (" (process)" if row.memory_kind == "resident" else "")

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
        if difference.low is None or difference.high is None:
            return self.signed(difference.mean)
        return f"{self.signed(difference.mean)} [{self.signed(difference.low)}, {self.signed(difference.high)}]"

    def signed(self, value: float) -> str:
        return f"{self.factor * value:+.{self.digits + self.is_share}f}".replace("-", "−")


def markdown(plan: Plan, rows: list[Row], candidates: list[Candidate]) -> str:
    """For each noise rate what came out, and what differs; how to read it; the search."""
    parts = [f"# {plan.metric} of {plan.recipe}: {len(plan.variants)} variants against {plan.baseline}", ""]
    for noise in plan.label_noise:
        here = [row for row in rows if row.label_noise == noise]
        if here:
            parts += [f"## Label noise {noise:.0%}", "", *_lines(result_heads(plan), results(plan, here)), ""]
            parts += [*_lines(difference_heads(), differences(plan, here)), ""]
    for note in notes(plan, rows):
        parts += [note, ""]
    return "\n".join([*parts, *_search(plan, candidates)]).rstrip() + "\n"


def result_heads(plan: Plan) -> list[str]:
    unit = Format(plan.metric).unit
    return [
        *("variant", "n", f"final epoch ({unit})", f"best epoch ({unit})"),
        *("compute", "seconds", f"× {plan.baseline}", "peak memory"),
    ]


def results(plan: Plan, rows: list[Row]) -> list[list[str]]:
    """Under `result_heads`, a line a row."""
    show = Format(plan.metric)
    return [
        [
            row_name(row),
            f"{len(row.seeds)}" + (f" ({len(row.failed)} failed)" if row.failed else ""),
            show.sample(row.samples["final"]),
            show.sample(row.samples["best"]),
            f"{row.compute:g}",
            _number(row.seconds, ".1f"),
            _number(row.time_ratio, ".2f"),
            _memory(row),
        ]
        for row in rows
    ]


def difference_heads() -> list[str]:
    return [
        *("variant", "minus", "verdict", "final epoch [95%]", "p", "p by Holm", "pairs"),
        *("best epoch [95%]", "p by Holm"),
    ]


def differences(plan: Plan, rows: list[Row]) -> list[list[str]]:
    """Under `difference_heads`, a line a comparison: to the baseline as it is, then at equal compute."""
    show, lines = Format(plan.metric), []
    for opponent, kind in ((None, "against_baseline"), ("twin", "at_equal_compute")):
        for row in rows:
            final, best = getattr(row, kind)["final"], getattr(row, kind)["best"]
            if final is not None:
                lines.append(
                    [
                        row.variant,
                        plan.baseline if opponent is None else f"{row.twin} (equal compute)",
                        verdict(final, plan.greater_is_better),
                        *(show.difference(final), _p(final), _p(final, adjusted=True), str(final.n)),
                        *(show.difference(best), _p(best, adjusted=True)),
                    ]
                )
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]


def row_name(row: Row) -> str:
    return row.variant + (f" ({describe(row.choice)})" if row.choice else "")


def notes(plan: Plan, rows: list[Row]) -> list[str]:
    """How to read the tables, a paragraph each."""
    count = comparisons(rows)
    paragraphs = [
        "mean ± standard deviation over seeds. Differences are paired by seed, with their 95% confidence intervals "
        f"(Student's t) in square brackets; p of the paired t test, then adjusted by Holm's method over all {count} "
        "comparisons above. `better` and `worse`: adjusted p below 0.05. Everything else is no evidence of a "
        "difference, nor of there being none.",
        "The best epoch is chosen on the very examples that it is reported on, so it flatters every variant. compute: "
        "epochs (updates, where max_steps is given) × passes an update. seconds: median time of training with its "
        "evaluations; runs that share a machine slow each other.",
    ]
    return paragraphs


def search_notes(plan: Plan, candidates: list[Candidate]) -> tuple[str, list[str]]:
    """What the search did, and what to beware of in its result."""
    assert plan.select is not None
    did = (
        f"On {plan.select.percentage}% of the training examples, which these runs did not train on (their labels as "
        f"noisy as the others), seeds {', '.join(map(str, plan.select.seeds))}, final epoch. "
        "The test set was not read."
    )
    return did, _at_edges(plan, candidates)


def _search(plan: Plan, candidates: list[Candidate]) -> list[str]:
    if plan.select is None or not candidates:
        return []
    before, after = search_notes(plan, candidates)
    return ["## Search", "", before, "", *_lines(search_heads(plan), search_rows(plan, candidates)), "", *after]


def search_heads(plan: Plan) -> list[str]:
    return ["variant", "label noise", "choice", f"{plan.metric}, mean", "chosen"]


def search_rows(plan: Plan, candidates: list[Candidate]) -> list[list[str]]:
    """Under `search_heads`, a line a candidate."""
    show, rows = Format(plan.metric), []
    for c in candidates:
        seeds = len(plan.select.seeds) if plan.select is not None else 0
        score = f"{len(c.scores)} of {seeds} runs" if c.score is None else show.value(c.score)
        rows.append([c.variant, f"{c.label_noise:.0%}", describe(c.choice), score, "yes" if c.chosen else ""])
    return rows


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


def _p(difference: Difference | None, adjusted: bool = False) -> str:
    value = None if difference is None else difference.adjusted_p if adjusted else difference.p
    return "< 0.001" if value is not None and value < 0.001 else _number(value, ".3f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _memory(row: Row) -> str:
    if row.memory is None:
        return ""
    return f"{row.memory / 2**20:,.0f} MiB" + (" (process)" if row.memory_kind == "resident" else "")

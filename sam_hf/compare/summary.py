"""The records of a comparison, summarised in one row per variant and noise rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .plan import Plan
from .records import Records
from .search import Candidate, choices
from .statistics import Difference, Sample, holm, paired_difference, verdict

# The final epoch comes first, because it is what training produces. Papers choose the best one on the test set
MOMENTS = ("final", "best")
_OPPONENTS = ("against_baseline", "at_equal_compute")


@dataclass(frozen=True)
class Row:
    """
    The results of a variant at a noise rate.

    Attributes:
        choice: what the search chose, empty if there was no search.
        seeds, failed: the seeds whose runs have finished, and those whose runs failed.
        diverged: the finished seeds whose metric or loss is not finite at the last epoch.
        values: by moment (`"final"` or `"best"` epoch) and seed, the plan's metric.
        samples: by moment.
        against_baseline, at_equal_compute: by moment, the paired difference from the baseline as it was written, and
            from the baseline trained with this variant's compute; `None` if there is no such comparison.
        twin: the other variant of `at_equal_compute`.
        compute: epochs (or updates) × passes per update.
        seconds: median time of training, evaluation included.
        time_ratio: median over seeds of the ratio of this time to the baseline's.
        memory: median of the peaks, in bytes.
        memory_kind: `"cuda"` or `"resident"`.
    """

    variant: str
    label_noise: float
    choice: Mapping[str, Any]
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    diverged: tuple[int, ...]
    values: Mapping[str, Mapping[int, float]]
    samples: Mapping[str, Sample]
    against_baseline: Mapping[str, Difference | None]
    at_equal_compute: Mapping[str, Difference | None]
    twin: str | None
    compute: float
    seconds: float | None
    time_ratio: float | None
    memory: float | None
    memory_kind: str | None

    def as_json(self, greater_is_better: bool) -> dict[str, Any]:
        content = asdict(self)
        if not self.diverged:  # most results have none
            del content["diverged"]
        for name in _OPPONENTS:
            for moment, difference in getattr(self, name).items():
                if difference is not None:
                    content[name][moment]["verdict"] = verdict(difference, greater_is_better)
        return content


def summarise(plan: Plan, records: Records, candidates: list[Candidate]) -> list[Row]:
    """Return a row for each variant and noise rate that has finished or failed runs, with adjusted p-values."""
    known = plan.known_choices(choices(candidates))
    finished: dict[tuple[str, float], dict[int, dict]] = {}
    failed: dict[tuple[str, float], tuple[int, ...]] = {}
    for (name, noise), choice in known.items():
        runs = {seed: plan.final_run(name, choice, noise, seed) for seed in plan.seeds}
        by_seed = {seed: record for seed, run in runs.items() if (record := records.finished(run)) is not None}
        finished[name, noise] = by_seed
        failed[name, noise] = tuple(seed for seed, run in runs.items() if seed not in by_seed and records.get(run))
    rows = [
        _row(plan, name, noise, choice, finished, failed[name, noise])
        for (name, noise), choice in known.items()
        if finished[name, noise] or failed[name, noise]
    ]
    return _adjusted(rows)


def _row(
    plan: Plan,
    name: str,
    noise: float,
    choice: Mapping[str, Any],
    finished: Mapping[tuple[str, float], dict[int, dict]],
    failed: tuple[int, ...],
) -> Row:
    grid, twin = plan.variants[name].grid, plan.twin(name, choice)
    by_seed, of_baseline = finished[name, noise], finished.get((plan.baseline, noise), {})
    values = _values(plan, by_seed)
    seconds = {seed: record["train"]["train_runtime"] for seed, record in by_seed.items()}
    ratios = [s / of_baseline[seed]["train"]["train_runtime"] for seed, s in seconds.items() if seed in of_baseline]
    memory = [record["memory"] for record in by_seed.values() if record["memory"] is not None]

    def differences(opponent: str | None) -> dict[str, Difference | None]:
        if opponent is None or opponent == name:
            return dict.fromkeys(MOMENTS)
        others = _values(plan, finished.get((opponent, noise), {}))
        return {moment: paired_difference(values[moment], others[moment]) for moment in MOMENTS}

    return Row(
        variant=name,
        label_noise=noise,
        choice=choice if len(grid) > 1 else {},
        seeds=tuple(sorted(by_seed)),
        failed=failed,
        diverged=tuple(seed for seed in sorted(by_seed) if _has_diverged(plan, by_seed[seed])),
        values=values,
        samples={moment: Sample.of(list(values[moment].values())) for moment in MOMENTS},
        against_baseline=differences(plan.baseline),
        # If the twin is the baseline itself, this is the same comparison, and Holm's method must count it once
        at_equal_compute=differences(twin if twin != plan.baseline else None),
        twin=twin,
        compute=plan.compute[name][grid.index(choice)],
        seconds=float(np.median(list(seconds.values()))) if seconds else None,
        time_ratio=float(np.median(ratios)) if ratios else None,
        memory=float(np.median([entry["peak"] for entry in memory])) if memory else None,
        memory_kind=memory[0]["kind"] if memory else None,
    )


def _values(plan: Plan, by_seed: Mapping[int, dict]) -> dict[str, dict[int, float]]:
    """Return the plan's metric by moment and seed, without values that are not finite."""
    values: dict[str, dict[int, float]] = {moment: {} for moment in MOMENTS}
    for seed, record in by_seed.items():
        over_epochs = [entry.get(plan.metric, math.nan) for entry in record["evaluations"]]
        finite = [value for value in over_epochs if math.isfinite(value)]
        if math.isfinite(over_epochs[-1]):
            values["final"][seed] = over_epochs[-1]
        if finite:
            values["best"][seed] = max(finite) if plan.greater_is_better else min(finite)
    return values


def _has_diverged(plan: Plan, record: Mapping[str, Any]) -> bool:
    """
    Return whether the last evaluation has a metric or a loss that is not finite. A classifier whose outputs are NaN
    still has a finite accuracy, that of always answering the first class.
    """
    last = record["evaluations"][-1]
    return not all(math.isfinite(last.get(name, 0.0)) for name in (plan.metric, "eval_loss"))


def _adjusted(rows: list[Row]) -> list[Row]:
    """Adjust p-values by Holm's method over all comparisons of one moment: all variants, noise rates and opponents."""
    for moment in MOMENTS:
        tested = _tested(rows, moment)
        p_values = holm([difference.p for *_, difference in tested])
        for (i, kind, difference), p in zip(tested, p_values, strict=True):
            changed: dict[str, Any] = {kind: {**getattr(rows[i], kind), moment: replace(difference, adjusted_p=p)}}
            rows[i] = replace(rows[i], **changed)
    return rows


def _tested(rows: list[Row], moment: str) -> list[tuple[int, str, Any]]:
    """Return all differences that have a p-value, each with the index of its row and the kind of opponent."""
    return [
        (i, kind, difference)
        for i, row in enumerate(rows)
        for kind in _OPPONENTS
        if (difference := getattr(row, kind)[moment]) is not None and difference.p is not None
    ]


def comparisons(rows: list[Row]) -> int:
    """Return the number of p-values of final epochs, for which Holm's method adjusts each of them."""
    return len(_tested(rows, "final"))

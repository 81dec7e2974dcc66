"""The records of a comparison, brought down to one row a variant and noise rate."""

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

# Final epoch first: it is what training leaves behind. The best one is chosen on the test set itself, as papers do
MOMENTS = ("final", "best")


@dataclass(frozen=True)
class Row:
    """
    A variant at a noise rate.

    Attributes:
        choice: what the search chose, empty where there was none.
        seeds: those that have finished; `failed`: those whose run failed.
        values: by moment (`"final"`, `"best"` epoch) and seed, the plan's metric.
        samples: by moment.
        against_baseline, at_equal_compute: by moment, the paired difference to the baseline as it was written, and
            to the one that was trained with this variant's compute; `None` where there is no such comparison.
        twin: the variant of `at_equal_compute`.
        compute: epochs (or updates) × passes.
        seconds: median time of training, evaluation included; `time_ratio`: median over seeds of its ratio to the
            baseline's.
        memory: median peak, bytes; `memory_kind`: `"cuda"` or `"resident"`.
    """

    variant: str
    label_noise: float
    choice: Mapping[str, Any]
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
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
        for name in ("against_baseline", "at_equal_compute"):
            for moment, difference in getattr(self, name).items():
                if difference is not None:
                    content[name][moment]["verdict"] = verdict(difference, greater_is_better)
        return content


def summarise(plan: Plan, records: Records, candidates: list[Candidate]) -> list[Row]:
    """A row for every noise rate and variant that has a finished or failed run, p-values adjusted over all rows."""
    chosen = choices(candidates)
    rows: dict[tuple[str, float], Row] = {}
    found = {
        (name, noise): _finished(plan, records, name, choice, noise)
        for noise in plan.label_noise
        for name, variant in plan.variants.items()
        if (choice := chosen.get((name, noise), variant.grid[0] if len(variant.grid) == 1 else None)) is not None
    }
    for (name, noise), by_seed in found.items():
        choice = chosen.get((name, noise), {})
        base = found.get((plan.baseline, noise), {})
        twin = plan.twin(name, chosen.get((name, noise), plan.variants[name].grid[0]))
        other = found.get((twin, noise), {}) if twin is not None else {}
        failed = _failed(plan, records, name, chosen.get((name, noise), plan.variants[name].grid[0]), noise)
        if by_seed or failed:
            rows[name, noise] = _row(plan, name, noise, choice, by_seed, failed, base, twin, other)
    return _adjusted(list(rows.values()))


def _row(plan, name, noise, choice, by_seed, failed, base, twin, other) -> Row:
    values = {moment: _values(plan, by_seed, moment) for moment in MOMENTS}
    base_values = {moment: _values(plan, base, moment) for moment in MOMENTS}
    other_values = {moment: _values(plan, other, moment) for moment in MOMENTS}
    grid = plan.variants[name].grid
    seconds = {seed: record["train"]["train_runtime"] for seed, record in by_seed.items()}
    ratios = [s / base[seed]["train"]["train_runtime"] for seed, s in seconds.items() if seed in base]
    memory = [record["memory"] for record in by_seed.values() if record["memory"] is not None]
    is_baseline = name == plan.baseline
    return Row(
        variant=name,
        label_noise=noise,
        choice=choice,
        seeds=tuple(sorted(by_seed)),
        failed=failed,
        values=values,
        samples={moment: Sample.of(list(values[moment].values())) for moment in MOMENTS},
        against_baseline={
            moment: None if is_baseline else paired_difference(values[moment], base_values[moment])
            for moment in MOMENTS
        },
        at_equal_compute={
            # Where the twin is the baseline itself, this is the comparison just made, and counts once
            moment: None
            if twin is None or twin == plan.baseline
            else paired_difference(values[moment], other_values[moment])
            for moment in MOMENTS
        },
        twin=twin,
        compute=plan.compute[name][grid.index(choice) if choice else 0],
        seconds=float(np.median(list(seconds.values()))) if seconds else None,
        time_ratio=float(np.median(ratios)) if ratios else None,
        memory=float(np.median([entry["peak"] for entry in memory])) if memory else None,
        memory_kind=memory[0]["kind"] if memory else None,
    )


def _finished(plan: Plan, records: Records, name: str, choice: Mapping[str, Any], noise: float) -> dict[int, dict]:
    runs = {seed: plan.final_run(name, choice, noise, seed) for seed in plan.seeds}
    return {seed: record for seed, run in runs.items() if (record := records.finished(run)) is not None}


def _failed(plan: Plan, records: Records, name: str, choice: Mapping[str, Any], noise: float) -> tuple[int, ...]:
    runs = {seed: plan.final_run(name, choice, noise, seed) for seed in plan.seeds}
    return tuple(seed for seed, run in runs.items() if records.get(run) and not records.finished(run))


def _values(plan: Plan, by_seed: Mapping[int, dict], moment: str) -> dict[int, float]:
    best = max if plan.greater_is_better else min
    values = {}
    for seed, record in by_seed.items():
        over_epochs = [entry.get(plan.metric, math.nan) for entry in record["evaluations"]]
        finite = [value for value in over_epochs if math.isfinite(value)]
        if moment == "final" and math.isfinite(over_epochs[-1]):
            values[seed] = over_epochs[-1]
        elif moment == "best" and finite:
            values[seed] = best(finite)
    return values


def _adjusted(rows: list[Row]) -> list[Row]:
    """Holm over all comparisons that one moment makes: every variant, noise rate and opponent."""
    for moment in MOMENTS:
        places = [
            (i, kind)
            for i, row in enumerate(rows)
            for kind in ("against_baseline", "at_equal_compute")
            if (difference := getattr(row, kind)[moment]) is not None and difference.p is not None
        ]
        p_values = holm([getattr(rows[i], kind)[moment].p for i, kind in places])
        for (i, kind), p in zip(places, p_values, strict=True):
            old = getattr(rows[i], kind)
            new = {**old, moment: replace(old[moment], adjusted_p=p)}
            rows[i] = (
                replace(rows[i], against_baseline=new)
                if kind == "against_baseline"
                else replace(rows[i], at_equal_compute=new)
            )
    return rows


def comparisons(rows: list[Row], moment: str = "final") -> int:
    """How many p-values Holm's adjustment was over."""
    both = [difference for row in rows for difference in (row.against_baseline[moment], row.at_equal_compute[moment])]
    return sum(difference is not None and difference.p is not None for difference in both)

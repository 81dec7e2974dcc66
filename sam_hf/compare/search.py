"""Deciding a grid by examples cut off from training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .plan import Plan, Variant
from .records import Records


@dataclass(frozen=True)
class Candidate:
    """
    A choice of a grid, as the search saw it.

    Attributes:
        score: mean over seeds of the plan's metric at the last epoch, `None` where a run failed or diverged.
        scores: by seed, those that there are.
    """

    variant: str
    label_noise: float
    choice: Mapping[str, Any]
    score: float | None
    scores: tuple[float, ...]
    chosen: bool = False

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "scores": [score if math.isfinite(score) else None for score in self.scores]}


def search_results(plan: Plan, records: Records) -> list[Candidate]:
    """Every candidate of every variant and noise rate, the best of each marked as chosen once all of them have run."""
    if plan.select is None:
        return []
    candidates = []
    for variant in plan.variants.values():
        if len(variant.grid) > 1:
            for noise in plan.label_noise:
                candidates += _of_one_grid(plan, records, variant, noise)
    return candidates


def choices(candidates: list[Candidate]) -> dict[tuple[str, float], Mapping[str, Any]]:
    """The chosen option values, by variant and noise rate."""
    return {(c.variant, c.label_noise): c.choice for c in candidates if c.chosen}


def _of_one_grid(plan: Plan, records: Records, variant: Variant, noise: float) -> list[Candidate]:
    assert plan.select is not None
    candidates, complete = [], True
    for choice in variant.grid:
        runs = [plan.selection_run(variant.name, choice, noise, seed) for seed in plan.select.seeds]
        complete &= all(records.get(run) is not None for run in runs)
        scores = tuple(
            record["evaluations"][-1].get(plan.metric, math.nan) for run in runs if (record := records.finished(run))
        )
        whole = len(scores) == len(runs) and all(map(math.isfinite, scores))
        candidates.append(Candidate(variant.name, noise, choice, float(np.mean(scores)) if whole else None, scores))
    sign = 1 if plan.greater_is_better else -1
    scored = [c for c in candidates if c.score is not None]
    # Of equals the one that the YAML names first
    best = max(scored, key=lambda c: sign * c.score, default=None) if complete else None  # type: ignore[operator]
    return [Candidate(**{**vars(c), "chosen": c is best}) for c in candidates]

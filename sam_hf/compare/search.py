"""Choosing among the values of a grid, by examples that are cut off from training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .plan import Plan, Variant
from .records import Records


@dataclass(frozen=True)
class Candidate:
    """
    A choice of a grid with its result in the search.

    Attributes:
        score: mean over seeds of the plan's metric at the last epoch; `None` if a run is missing, failed or diverged.
        scores: the values of the seeds whose runs have finished.
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
    """Return all candidates. The best of a variant and noise rate is marked as chosen once all of their runs ended."""
    if plan.select is None:
        return []
    grids = [variant for variant in plan.variants.values() if len(variant.grid) > 1]
    return [c for variant in grids for noise in plan.label_noise for c in _candidates(plan, records, variant, noise)]


def choices(candidates: list[Candidate]) -> dict[tuple[str, float], Mapping[str, Any]]:
    """Return the chosen options by variant and noise rate."""
    return {(c.variant, c.label_noise): c.choice for c in candidates if c.chosen}


def _candidates(plan: Plan, records: Records, variant: Variant, noise: float) -> list[Candidate]:
    assert plan.select is not None
    candidates, complete = [], True
    for choice in variant.grid:
        runs = [plan.selection_run(variant.name, choice, noise, seed) for seed in plan.select.seeds]
        complete &= all(records.get(run) is not None for run in runs)
        scores = tuple(
            record["evaluations"][-1].get(plan.metric, math.nan) for run in runs if (record := records.finished(run))
        )
        mean = float(np.mean(scores)) if len(scores) == len(runs) and all(map(math.isfinite, scores)) else None
        candidates.append(Candidate(variant.name, noise, choice, mean, scores))
    scored = {i: c.score for i, c in enumerate(candidates) if c.score is not None}
    if complete and scored:
        # Of candidates with equal scores, the first in the YAML file
        best = (max if plan.greater_is_better else min)(scored, key=lambda i: scored[i])
        candidates[best] = replace(candidates[best], chosen=True)
    return candidates

"""Means, paired differences with their intervals, and what may be concluded from them. Plain numbers in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """
    Mean and standard deviation (divisor n − 1) of n values; `None` where n leaves them undefined.
    """

    n: int
    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        n = len(values)
        return cls(n, float(np.mean(values)) if n else None, float(np.std(values, ddof=1)) if n > 1 else None)


@dataclass(frozen=True)
class Difference:
    """
    A paired comparison over the seeds that both sides have.

    Attributes:
        n: pairs.
        mean: of the differences.
        low, high: their 95% confidence interval by Student's t, `None` where there is none to be had.
        p: of the two-sided paired t test, `None` likewise.
        adjusted_p: `p` by Holm's method over the family of comparisons that it is one of.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None = None


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """
    `values` − `baseline` over their common seeds, `None` without one.

    Where all differences are equal, as accuracies of few examples can be, the t test knows no error: without a
    difference p is 1, with one there is neither an interval nor a p.
    """
    from scipy import stats

    seeds = sorted(values.keys() & baseline.keys())
    differences = np.array([values[seed] - baseline[seed] for seed in seeds])
    n = len(differences)
    if n == 0:
        return None
    mean = float(differences.mean())
    if n == 1:
        return Difference(1, mean, None, None, None)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    # A spread of rounding errors is none: 0.8 − 0.7 and 0.9 − 0.8 differ in the last bit
    if error <= 1e-12 * float(np.abs(differences).max()):
        return Difference(n, mean, 0.0, 0.0, 1.0) if mean == 0 else Difference(n, mean, None, None, None)
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Difference(n, mean, mean - width, mean + width, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the chance of one false discovery or more among all stays below the level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def verdict(difference: Difference | None, greater_is_better: bool) -> str:
    """What a reader may take away: `better` and `worse` only where it stands after Holm's adjustment."""
    if difference is None:
        return "no common seed"
    if difference.adjusted_p is None:
        return "one seed: no test" if difference.n == 1 else "equal differences: no test"
    if difference.adjusted_p < 1 - CONFIDENCE:
        return "better" if (difference.mean > 0) == greater_is_better else "worse"
    if difference.p is not None and difference.p < 1 - CONFIDENCE:
        return "only before adjustment"
    return "no significant difference"

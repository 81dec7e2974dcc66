"""Means, paired differences with their confidence intervals, and what may be concluded from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """The mean and standard deviation (divisor n − 1) of n values; `None` if n is too small."""

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
        n: number of pairs.
        mean: mean of the differences.
        low, high: limits of its 95% confidence interval by Student's t; `None` if there is no interval.
        p: p-value of the two-sided paired t test; `None` if there is no test.
        adjusted_p: `p` after Holm's adjustment for the family of comparisons that this one belongs to.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    adjusted_p: float | None = None


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """
    Return `values` − `baseline` over their common seeds, `None` if there are none.

    If all differences are equal, which accuracies on few examples can be, the t test has no standard error. Then there
    is no interval: one without width would claim that the difference is known exactly. p is 1 if the differences are
    0; otherwise there is no p-value either.
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
    # A spread of rounding errors counts as none: 0.8 − 0.7 and 0.9 − 0.8 differ in the last bit
    if differences.std(ddof=1) / np.sqrt(n) <= 1e-12 * np.abs(differences).max():
        return Difference(n, mean, None, None, 1.0 if mean == 0 else None)
    test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(n, mean, float(interval.low), float(interval.high), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method, so that the chance of any false discovery stays below the level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def verdict(difference: Difference | None, greater_is_better: bool) -> str:
    """Return the conclusion: `better` or `worse` only if the difference is significant after Holm's adjustment."""
    if difference is None:
        return "no common seed"
    if difference.adjusted_p is None:
        return "one seed: no test" if difference.n == 1 else "equal differences: no test"
    if difference.adjusted_p < 1 - CONFIDENCE:
        return "better" if (difference.mean > 0) == greater_is_better else "worse"
    if difference.p is not None and difference.p < 1 - CONFIDENCE:
        return "only before adjustment"
    return "no significant difference"

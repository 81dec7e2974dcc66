"""Tests of the statistics against scipy and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sam_hf.compare.statistics import Difference, Sample, holm, paired_difference, verdict


def test_a_difference_is_scipys_paired_test_with_its_interval():
    a = {0: 0.81, 1: 0.78, 2: 0.84, 3: 0.80, 4: 0.79}
    b = {0: 0.79, 1: 0.77, 2: 0.80, 3: 0.80, 4: 0.78}
    expected = stats.ttest_rel([a[i] for i in range(5)], [b[i] for i in range(5)])
    interval = expected.confidence_interval(0.95)
    found = paired_difference(a, b)
    assert found.n == 5
    np.testing.assert_allclose(
        [found.mean, found.low, found.high, found.p], [0.016, interval.low, interval.high, expected.pvalue], rtol=1e-9
    )


def test_a_difference_worked_out_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1/√3, and t with 2 degrees of freedom has the quantile 4.302653
    found = paired_difference({7: 1.0, 8: 3.0, 9: 5.0}, {7: 0.0, 8: 1.0, 9: 2.0})
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    # With 2 degrees of freedom P(|t| > x) = 1 − x/√(x² + 2), and x is 2√3
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)


def test_only_common_seeds_are_paired():
    found = paired_difference({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.0, 2: 1.0, 5: 100.0})
    assert (found.n, found.mean) == (2, 4.5)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "baseline", "expected"),
    [
        ({0: 0.8}, {0: 0.7}, "one seed: no test"),
        ({0: 0.8, 1: 0.9}, {0: 0.7, 1: 0.8}, "equal differences: no test"),
        ({0: 0.8, 1: 0.9}, {0: 0.8, 1: 0.9}, "no significant difference"),
        ({}, {0: 0.8}, "no common seed"),
    ],
    ids=["one pair", "no spread", "the same", "none"],
)
def test_what_cannot_be_tested_is_not_called_better(values, baseline, expected):
    difference = paired_difference(values, baseline)
    if difference is not None and difference.p is not None:
        difference = Difference(**{**vars(difference), "adjusted_p": difference.p})
    assert verdict(difference, True) == expected


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_equal_differences_have_no_interval(gain):
    """Two seeds with equal results would give one without width: the difference would seem to be known exactly."""
    difference = paired_difference({0: 0.8 + gain, 1: 0.9 + gain}, {0: 0.8, 1: 0.9})
    assert (difference.n, difference.mean) == (2, pytest.approx(gain))
    assert difference.low is None and difference.high is None
    assert difference.p == (1.0 if gain == 0 else None)


@pytest.mark.parametrize(
    ("mean", "p", "adjusted", "greater", "expected"),
    [
        (1.0, 0.001, 0.01, True, "better"),
        (-1.0, 0.001, 0.01, True, "worse"),
        (-1.0, 0.001, 0.01, False, "better"),
        (1.0, 0.03, 0.2, True, "only before adjustment"),
        (1.0, 0.3, 0.9, True, "no significant difference"),
    ],
)
def test_a_verdict_goes_by_the_adjusted_p_and_the_metrics_direction(mean, p, adjusted, greater, expected):
    assert verdict(Difference(5, mean, None, None, p, adjusted), greater) == expected


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and no value may be below one before it
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06], rtol=1e-12)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_holds_its_level_where_nothing_differs():
    generator = np.random.default_rng(0)
    families = generator.uniform(size=(2000, 8))
    wrong = np.mean([min(holm(list(family))) < 0.05 for family in families])
    assert 0.03 < wrong < 0.065  # min p < .05/8 happens to 4.9% of families


def test_a_sample_has_the_deviation_of_a_sample():
    assert Sample.of([1.0, 2.0, 4.0]) == Sample(3, pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert Sample.of([1.0]) == Sample(1, 1.0, None)
    assert Sample.of([]) == Sample(0, None, None)

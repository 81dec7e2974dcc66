"""Every method agrees with its formulas in float64: weights after 6 updates differ by less than 1e-9."""

from __future__ import annotations

import math

import pytest
import reference
from reference_methods import DEFAULTS
from runs import OPTIMIZERS, assert_agree
from tiny import bert, flat, perceptron, points, relative_difference, sentences, summed_cross_entropy, trained

from sam_hf.methods import METHODS

ONE_GROUP = ["msam"]  # has no groups: m is refused
KNOWN = [method for method in METHODS if method in DEFAULTS]
# Includes the updates of looksam between its SAM updates
INTERVALS = {"looksam": 3}
WINDOWS = {"1x8": {"batch_size": 8, "accumulation": 1}, "2x4": {"batch_size": 4, "accumulation": 2}}


def test_the_reference_knows_every_perturbing_method():
    assert set(DEFAULTS) <= set(METHODS)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", KNOWN)
def test_methods_and_optimizers(tmp_path, method, optimizer, window):
    assert_agree(tmp_path, method, optimizer, interval=INTERVALS.get(method, 1), **WINDOWS[window])


@pytest.mark.parametrize("m", [4, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", [method for method in KNOWN if method not in ONE_GROUP])
def test_groups(tmp_path, method, optimizer, m):
    """m is a micro-batch, or half of one."""
    assert_agree(tmp_path, method, optimizer, m=m, interval=INTERVALS.get(method, 1))


@pytest.mark.parametrize("method", KNOWN)
def test_two_micro_batches_of_four_equal_one_of_eight(tmp_path, method):
    weights = []
    for batch_size, accumulation in [(8, 1), (4, 2)]:
        model = perceptron()
        trained(
            model,
            points(24),
            tmp_path,
            sam_method=method,
            sam_rho=0.2,
            sam_interval=INTERVALS.get(method, 1),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            **OPTIMIZERS["adamw"],
        )
        weights.append(flat(model))
    assert relative_difference(*weights) < 1e-12


OTHER_OPTIONS = [
    ("asam", {"eta": 0.5}),
    ("gsam", {"alpha": 0.1}),
    ("gsam", {"alpha": 0.0}),
    ("wsam", {"gamma": 0.5}),
    ("wsam", {"gamma": 0.7, "decouple": True}),
    ("fsam", {"sigma": 0.5}),
    ("fsam", {"lambda": 0.6}),
    ("fsam", {"sigma": 0.7, "lambda": 0.0}),
    ("vasso", {"theta": 0.9}),
    ("looksam", {"alpha": 0.2}),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("method", "options"), OTHER_OPTIONS, ids=str)
def test_options(tmp_path, method, options, optimizer):
    assert_agree(tmp_path, method, optimizer, options=options, interval=INTERVALS.get(method, 1))


@pytest.mark.parametrize(("p", "k"), [(1.5, 1), (math.inf, 1), (2.0, 3), (3.0, 2)])
@pytest.mark.parametrize("method", ["gsam", "wsam", "looksam"])
def test_norms_and_ascent_steps(tmp_path, method, p, k):
    assert_agree(tmp_path, method, p=p, k=k, interval=INTERVALS.get(method, 1))


@pytest.mark.parametrize("m", [None, 4])
def test_asam_takes_t_at_w_in_every_ascent_step(tmp_path, m):
    assert_agree(tmp_path, "asam", k=3, m=m, rho=2.0)


@pytest.mark.parametrize("method", KNOWN)
def test_on_bert(tmp_path, method):
    """asam uses parameters' own names. Trainer adds these losses up and does not divide them."""
    interval = INTERVALS.get(method, 1)
    model = {"make_model": bert, "make_data": sentences, "weigh": reference.sum_of_means}
    assert_agree(tmp_path, method, "adamw", interval=interval, batch_size=2, **model)


@pytest.mark.parametrize("method", KNOWN)
def test_ragged_windows_whose_loss_is_a_sum_over_them(tmp_path, method):
    # Windows of 4+4 and 3 examples
    how = {"weigh": reference.equal_weights, "compute_loss_func": summed_cross_entropy, "size": 11}
    assert_agree(tmp_path, method, interval=INTERVALS.get(method, 1), **how)


@pytest.mark.parametrize("method", KNOWN)
def test_clipping_and_learning_rate_schedule(tmp_path, method):
    """The update gradient is clipped, but not the radius."""
    schedule = {"max_grad_norm": 0.05, "lr_scheduler_type": "linear"}
    assert_agree(tmp_path, method, interval=INTERVALS.get(method, 1), **schedule)


def test_decoupled_wsam_follows_the_learning_rate(tmp_path):
    options = {"decouple": True}
    assert_agree(tmp_path, "wsam", "adamw", options=options, lr_scheduler_type="cosine")

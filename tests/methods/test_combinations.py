"""Several axes at once agree with the reference."""

from __future__ import annotations

import math

import pytest
import reference
from reference_methods import DEFAULTS
from runs import assert_agree
from tiny import bert, sentences

from sam_hf.methods import METHODS

KNOWN = [method for method in METHODS if method in DEFAULTS]
TWO_PASSES = [method for method in KNOWN if method != "msam"]
BERT = {"make_model": bert, "make_data": sentences, "weigh": reference.sum_of_means, "batch_size": 2}
NORM = {"targets": "norm", "perturbs": lambda name: "LayerNorm" in name}
TIMING = {"interval": 2, "schedule": "cosine", "rho_min": 0.05, "lr_scheduler_type": "linear"}


@pytest.mark.parametrize("method", KNOWN)
def test_mask_schedule_and_timing(tmp_path, method):
    assert_agree(tmp_path, method, "adamw", max_grad_norm=1.0, start=0.1, **NORM, **TIMING, **BERT)


@pytest.mark.parametrize("method", TWO_PASSES)
def test_mask_groups_and_fraction(tmp_path, method):
    interval = 2 if method == "looksam" else 1
    how = {"accumulation": 4, "m": 4, "fraction": 0.5, "interval": interval}
    assert_agree(tmp_path, method, "momentum", **how, **NORM, **BERT)


@pytest.mark.parametrize("method", ["sam", "gsam", "wsam", "looksam"])
def test_everything(tmp_path, method):
    how = {"accumulation": 4, "m": 2, "fraction": 0.5, "p": 3.0, "k": 2}
    assert_agree(tmp_path, method, "adamw", **how, **NORM, **TIMING, **BERT)


@pytest.mark.parametrize("method", ["fsam", "vasso"])
def test_averages_with_slices_fractions_and_plain_updates(tmp_path, method):
    assert_agree(tmp_path, method, "adamw", batch_size=8, accumulation=2, m=4, fraction=0.3, **TIMING)


def test_asam_in_steps_over_slices(tmp_path):
    assert_agree(tmp_path, "asam", "adamw", batch_size=8, accumulation=2, m=4, fraction=0.75, k=2, rho=1.0)


@pytest.mark.parametrize("method", ["sam", "gsam", "wsam", "looksam"])
def test_infinite_p_on_a_mask(tmp_path, method):
    targets = {"targets": ["query", "value"], "perturbs": lambda name: ".query." in name or ".value." in name}
    interval = 2 if method == "looksam" else 1
    assert_agree(tmp_path, method, p=math.inf, rho=0.02, interval=interval, **targets, **BERT)

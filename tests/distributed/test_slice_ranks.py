"""All ranks weigh slices alike, and refuse a loss together, also where the examples of one rank alone tell."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = pytest.mark.distributed
NAMES = [f"{loss}, {cut}" for loss in ("class weights", "examples") for cut in ("slices", "fraction")]


@pytest.fixture(scope="module")
def results(torchrun):
    out = torchrun("slice_ranks_worker.py")
    names = [*NAMES, "examples, plain", "late", "auto"]
    return {name: [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in (0, 1)] for name in names}


@pytest.mark.parametrize("cut", ["slices", "fraction"])
def test_what_one_rank_finds_is_refused_on_both(results, cut):
    for rank in results[f"class weights, {cut}"]:
        assert "the losses of slices do not add up" in rank["error"]


@pytest.mark.parametrize("cut", ["slices", "fraction"])
def test_both_ranks_weigh_as_one_of_them_has_found(results, cut):
    expected = torch.tensor(results["examples, plain"][0]["weights"])
    for rank in results[f"examples, {cut}"]:
        assert rank["error"] is None
        torch.testing.assert_close(torch.tensor(rank["weights"]), expected, rtol=1e-9, atol=1e-12)


def test_ranks_agree_when_candidates_begin_to_differ_late(results):
    first, second = results["late"]
    assert first["error"] is second["error"] is None
    assert first["weights"] == second["weights"]


def test_the_difference_of_the_losses_is_the_sharpness(results):
    """Means over the updates of all ranks, the first, plain one included."""
    for rank in results["auto"]:
        assert len(rank["log"]) == 2
        for entry in rank["log"]:
            difference = entry["sam_perturbed_loss"] - entry["loss"]
            assert difference == pytest.approx(entry["sam_sharpness"], abs=1e-6)

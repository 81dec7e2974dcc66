"""Two real ranks over gloo equal a float64 reference that computes both ranks in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ddp_cases import CASES, MICRO_BATCH, UPDATES, dataset, make_model
from replicas import dealt, train

pytestmark = pytest.mark.distributed
RANKS = 2
EXACT = [name for name in CASES if "overflow" not in name]


@pytest.fixture(scope="module")
def results(torchrun) -> dict[str, list[dict]]:
    out = torchrun("ddp_worker.py")
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in CASES}


@pytest.mark.parametrize("name", EXACT)
def test_equals_the_reference(results, name):
    case = CASES[name]
    accumulation = case.get("gradient_accumulation_steps", 1)
    data = dataset(RANKS * MICRO_BATCH * accumulation * UPDATES)
    expected = train(
        make_model,
        dealt(data, RANKS, MICRO_BATCH, accumulation),
        MICRO_BATCH,
        m=case.get("sam_m"),
        synchronised=case.get("sam_sync_perturbation", False),
        steps=case.get("sam_ascent_steps", 1),
    )
    for rank in range(RANKS):
        torch.testing.assert_close(results[name][rank]["weights"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_end_with_identical_weights(results, name):
    first, second = (r["weights"] for r in results[name])
    assert torch.equal(first, second)


def test_synchronising_the_perturbation_changes_it(results):
    assert not torch.allclose(results["local"][0]["weights"], results["synchronised"][0]["weights"], rtol=1e-6)


@pytest.mark.parametrize("name", ["overflow", "overflow, synchronised"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(results, name):
    for rank in range(RANKS):
        weights = results[name][rank]["weights"]
        assert weights.isfinite().all()
        assert torch.equal(weights[2], weights[1]), "the scaler must skip the step on all ranks"
        assert not torch.equal(weights[3], weights[2]), "training must continue"
    skipped = [row["sam_skipped"] for row in results[name][0]["log"] if "sam_skipped" in row]
    assert skipped == [0.0, 0.0, 0.5 if name == "overflow" else 1.0, 0.0]


def test_metrics_are_means_over_ranks(results):
    logs = [[row for row in r["log"] if "sam_sharpness" in row] for r in results["local"]]
    assert len(logs[0]) == UPDATES
    for first, second in zip(*logs, strict=True):
        for key in ("loss", "sam_perturbed_loss", "sam_sharpness", "sam_ascent_grad_norm"):
            assert first[key] == second[key]
        assert first["sam_sharpness"] == pytest.approx(first["sam_perturbed_loss"] - first["loss"], abs=1e-6)

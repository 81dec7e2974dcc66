"""Two real ranks over gloo against a float64 reference that computes both ranks in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ddp_cases import CASES, LEARNING_RATE, MICRO_BATCH, RHO, UPDATES, dataset, make_model

pytestmark = pytest.mark.distributed
RANKS = 2
EXACT = [name for name in CASES if "overflow" not in name]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[dict]]:
    out = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    worker = Path(__file__).parent / "ddp_worker.py"
    # A rank that waits for a collective that the other never enters would hang: the timeout is part of the test
    answer = subprocess.run(
        [*command, str(worker), str(out)],
        capture_output=True,
        text=True,
        timeout=240,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    assert answer.returncode == 0, answer.stderr[-4000:]
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in CASES}


def gradient(weights: torch.Tensor, batch: list[dict]) -> torch.Tensor:
    model = make_model()
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    x = torch.stack([row["x"] for row in batch])
    y = torch.stack([row["labels"] for row in batch])
    loss = model(x, y)["loss"]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def reference(case: dict) -> torch.Tensor:
    """Weights after each update: batches are dealt to the ranks in turn, as accelerate deals them."""
    accumulation = case.get("gradient_accumulation_steps", 1)
    steps = case.get("sam_ascent_steps", 1)
    data = dataset(RANKS * MICRO_BATCH * accumulation * UPDATES)
    batches = [data[i : i + MICRO_BATCH] for i in range(0, len(data), MICRO_BATCH)]
    weights = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    history = []
    for update in range(UPDATES):
        window = batches[update * RANKS * accumulation : (update + 1) * RANKS * accumulation]
        per_rank = [window[rank::RANKS] for rank in range(RANKS)]
        size = 1 if "sam_m" in case else accumulation
        total = torch.zeros_like(weights)
        for start in range(0, accumulation, size):
            groups = [batches_of[start : start + size] for batches_of in per_rank]
            epsilons = [torch.zeros_like(weights) for _ in range(RANKS)]
            for _ in range(steps):
                ascents = [
                    sum(gradient(weights + epsilon, batch) for batch in group) / len(group)
                    for group, epsilon in zip(groups, epsilons, strict=True)
                ]
                if case.get("sam_sync_perturbation"):
                    ascents = [sum(ascents) / RANKS] * RANKS
                epsilons = [e + RHO / steps * g / g.norm() for e, g in zip(epsilons, ascents, strict=True)]
            for group, epsilon in zip(groups, epsilons, strict=True):
                total += sum(gradient(weights + epsilon, batch) for batch in group) / accumulation / RANKS
        weights = weights - LEARNING_RATE * total
        history.append(weights)
    return torch.stack(history)


@pytest.mark.parametrize("name", EXACT)
def test_equals_the_reference(results, name):
    expected = reference(CASES[name])
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
        assert torch.equal(weights[2], weights[1]), "the scaler lets no rank step"
        assert not torch.equal(weights[3], weights[2]), "training goes on"
    skipped = [row["sam_skipped"] for row in results[name][0]["log"] if "sam_skipped" in row]
    assert skipped == [0.0, 0.0, 0.5 if name == "overflow" else 1.0, 0.0]


def test_metrics_are_means_over_ranks(results):
    logs = [[row for row in r["log"] if "sam_sharpness" in row] for r in results["local"]]
    assert len(logs[0]) == UPDATES
    for first, second in zip(*logs, strict=True):
        for key in ("loss", "sam_perturbed_loss", "sam_sharpness", "sam_ascent_grad_norm"):
            assert first[key] == second[key]
        assert first["sam_sharpness"] == pytest.approx(first["sam_perturbed_loss"] - first["loss"], abs=1e-6)

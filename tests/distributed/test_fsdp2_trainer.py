"""SAMTrainer on a model that transformers shards with FSDP2 while loading, also with adapters, equals one process."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from fsdp2_trainer_cases import ACCUMULATION, CASES, MICRO_BATCH, RANKS, dataset, load_model
from replicas import dealt, train

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(torchrun) -> Path:
    return torchrun("fsdp2_trainer_worker.py")


def result(folder: Path, name: str) -> list[dict]:
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", list(CASES))
def test_equals_one_process_with_one_perturbation_for_all_ranks(folder, name):
    case = CASES[name]
    expected = train(
        partial(load_model, folder / "model", case),
        dealt(dataset(), RANKS, MICRO_BATCH, ACCUMULATION),
        MICRO_BATCH,
        m=case.arguments.get("sam_m"),
        synchronised=True,
        steps=case.arguments.get("sam_ascent_steps", 1),
        unperturbed=[(1, 1)] if case.not_finite else [],
    )
    for rank in result(folder, name):
        torch.testing.assert_close(rank["weights"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_end_with_identical_weights(folder, name):
    first, second = result(folder, name)
    assert torch.equal(first["weights"], second["weights"])


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("window", {"sharded"}),
        ("hybrid", {"sharded"}),
        ("adapters", {"replicated"}),
        ("adapters and shards", {"sharded", "replicated"}),
    ],
)
def test_parameters_are_of_the_kind_that_the_case_is_about(folder, name, kinds):
    assert all(rank["kinds"] == kinds for rank in result(folder, name))


def test_an_ascent_that_is_not_finite_on_one_rank_is_skipped_on_all(folder):
    for rank in result(folder, "not finite on one rank"):
        skipped = [row["sam_skipped"] for row in rank["log"] if "sam_skipped" in row]
        assert skipped == [0.0, 1.0, 0.0]

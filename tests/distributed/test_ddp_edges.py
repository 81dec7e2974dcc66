"""Replicas that differ from each other equal one process that computes each in turn, and end with the same weights."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ddp_edges import CASES, MICRO_BATCH, make_model
from replicas import train

pytestmark = pytest.mark.distributed
RANKS = 2
EXACT = [name for name, case in CASES.items() if case.exact]


@pytest.fixture(scope="module")
def results(torchrun) -> dict[str, list[dict]]:
    out = torchrun("ddp_edges_worker.py")
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in CASES}


def windows_of(ranks: list[dict]) -> list[list[list[dict]]]:
    return [list(window) for window in zip(*(rank["windows"] for rank in ranks), strict=True)]


@pytest.mark.parametrize("name", EXACT)
def test_equals_one_process(results, name):
    case = CASES[name]
    expected = train(
        partial(make_model, case.parts),
        windows_of(results[name]),
        MICRO_BATCH,
        m=case.m,
        synchronised=case.synchronised,
        steps=case.arguments.get("sam_ascent_steps", 1),
        unperturbed=[(1, 1)] if case.not_finite else [],
    )
    for rank in results[name]:
        torch.testing.assert_close(rank["weights"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_end_with_identical_weights(results, name):
    first, second = (rank["weights"] for rank in results[name])
    assert torch.equal(first.nan_to_num(nan=123.0), second.nan_to_num(nan=123.0))

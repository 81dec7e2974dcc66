"""FSDP2's sharded parameters give the same as whole ones. Trainer has no FSDP on the CPU: this is one level lower."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from fsdp2_worker import ORDERS, make_model, measure

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(torchrun) -> list[dict]:
    out = torchrun("fsdp2_worker.py")
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("order", ORDERS)
def test_norms_and_perturbations_are_global(results, order):
    whole = measure(make_model())
    for rank in results:
        torch.testing.assert_close(rank["norms"][order], whole["norms"][order], rtol=1e-12, atol=0)
        torch.testing.assert_close(rank["dot"], whole["dot"], rtol=1e-12, atol=0)
        torch.testing.assert_close(rank[f"perturbed {order}"], whole[f"perturbed {order}"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("order", ORDERS)
def test_shards_come_back_bit_for_bit(results, order):
    assert all(rank[f"restored {order}"] for rank in results)

"""Windows over FSDP2 shards equal one process, restore weights bit for bit, and resume from sharded checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from fsdp2_window_cases import ACCUMULATION, CASES, RANKS, SAVED_AFTER, UPDATES, single_process

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(torchrun) -> dict[str, list[dict]]:
    out = torchrun("fsdp2_window_worker.py")
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in CASES}


@pytest.mark.parametrize("name", list(CASES))
def test_gradients_and_weights_equal_one_process(results, name):
    expected = single_process(CASES[name])
    for rank in results[name]:
        torch.testing.assert_close(rank["gradients"], expected["gradients"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(rank["weights"], expected["weights"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_shards_come_back_bit_for_bit_after_every_micro_batch(results, name):
    for rank in results[name]:
        assert rank["restored"] == [True] * UPDATES * ACCUMULATION


@pytest.mark.parametrize("name", list(CASES))
def test_gradient_synchronisation_is_left_as_found(results, name):
    for rank in results[name]:
        assert rank["left_as_found"] == [True] * UPDATES * ACCUMULATION


@pytest.mark.parametrize("name", list(CASES))
def test_a_sharded_checkpoint_resumes_bit_for_bit(results, name):
    for rank in results[name]:
        assert not torch.equal(rank["weights"][SAVED_AFTER], rank["weights"][SAVED_AFTER - 1])
        assert torch.equal(rank["resumed"], rank["weights"][SAVED_AFTER:])

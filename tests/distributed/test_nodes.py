"""Two machines of one process each, launched with `configs/accelerate/multi_node.yaml`, equal one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ddp_edges import MICRO_BATCH, make_model
from replicas import train, windows_of

pytestmark = pytest.mark.distributed


def test_two_machines_end_with_the_same_weights(two_machines):
    out = two_machines("nodes_worker.py")
    ranks = [torch.load(out / f"nodes-{rank}.pt") for rank in range(2)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    expected = train(make_model, windows_of(ranks), MICRO_BATCH)
    torch.testing.assert_close(ranks[0]["weights"], expected, rtol=1e-9, atol=1e-12)

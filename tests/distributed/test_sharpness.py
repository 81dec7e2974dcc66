"""Sharpness over two real ranks equals that of all their examples in one process, and is the same on both."""

from __future__ import annotations

import pytest
import sharpness_worker as worker
import torch

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(torchrun):
    out = torchrun("sharpness_worker.py")
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


CASES = {
    "uneven": lambda _: worker.uneven(None),
    "wrapped": lambda _: worker.uneven(None),
    "drawn": lambda _: worker.drawn(),
    "single": lambda _: worker.single(),
    "trainer": worker.trainer,
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(results, name, tmp_path):
    expected = worker.measured(CASES[name](tmp_path))
    for key, value in expected.items():
        # Rounding decides where the Krylov space, and so the quadrature, ends; eigenvalues are within their tolerance
        torch.testing.assert_close(results[0][name][key], value, rtol=1e-6, atol=1e-9, msg=f"{name}: {key}")
        assert torch.equal(results[0][name][key], results[1][name][key]), key


def test_the_rank_without_examples_uses_the_same_attention(results):
    oracle = worker.attention()
    expected = oracle.hvp(torch.ones(oracle.dimension, dtype=torch.float64))
    for result in results:
        torch.testing.assert_close(result["attention"]["product"], expected)

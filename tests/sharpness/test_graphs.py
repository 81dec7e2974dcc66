"""Graphs kept between products: the products are the same, the memory is bounded, old weights are not used."""

from __future__ import annotations

import pytest
import torch
from exact import exact_hessian, oracle_of
from tiny import bert, perceptron, points, sentences

from sam_hf.sharpness import LossOracle, hessian_eigenvalues


@pytest.mark.parametrize("make, data", [(perceptron, points), (bert, sentences)], ids=["perceptron", "bert"])
def test_products_are_the_same_bit_for_bit(make, data):
    plain, kept = (oracle_of(make(), data(10), 4, graph_memory=memory) for memory in (0, 1))
    vectors = torch.randn(3, 2, plain.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with kept.measuring():
        for pair in vectors:
            assert torch.equal(kept.hvp(pair), plain.hvp(pair))


def passes_forward(oracle, monkeypatch, products: int) -> list[int]:
    """Return the number of batches that pass through the model in each of several products."""
    counts = []
    own = LossOracle.batch_loss

    def counted(self, batch):
        counts[-1] += 1
        return own(self, batch)

    vector = torch.ones(oracle.dimension, dtype=torch.float64)
    oracle.hvp(vector)  # the first product tries the attention
    monkeypatch.setattr(LossOracle, "batch_loss", counted)
    with oracle.measuring():
        for _ in range(products):
            counts.append(0)
            oracle.hvp(vector)
    return counts


def test_only_as_many_as_fit(monkeypatch):
    one = oracle_of(perceptron(), graph_memory=1)
    with one.measuring():
        one.hvp(torch.ones(one.dimension, dtype=torch.float64))
        whole = one._graphs.bytes
    assert one._graphs.bytes == 0  # freed at the end
    everything = oracle_of(perceptron(), graph_memory=1)
    half = oracle_of(perceptron(), graph_memory=whole * 0.7 / 2**30)
    assert passes_forward(everything, monkeypatch, 3) == [3, 0, 0]
    monkeypatch.undo()
    first, *later = passes_forward(half, monkeypatch, 3)
    assert first == 3 and later[0] == later[1] and 0 < later[0] < 3


def test_other_weights_within_a_measurement():
    model = perceptron()
    oracle = oracle_of(model, graph_memory=1)
    vector = torch.ones(oracle.dimension, dtype=torch.float64)
    with oracle.measuring():
        oracle.hvp(vector)
        with torch.no_grad():
            model.first.weight.mul_(2)
        found = oracle.hvp(vector)
    torch.testing.assert_close(found, exact_hessian(model, points(10)) @ vector)


def test_eigenvalues_with_kept_graphs():
    exact = torch.linalg.eigvalsh(exact_hessian(perceptron(), points(10))).flip(0)[:3]
    found = hessian_eigenvalues(oracle_of(perceptron(), graph_memory=1), 3)
    torch.testing.assert_close(found.values, exact, rtol=1e-6, atol=0)


def test_an_allowance_below_zero():
    with pytest.raises(ValueError, match="graph_memory=-1"):
        oracle_of(perceptron(), graph_memory=-1)

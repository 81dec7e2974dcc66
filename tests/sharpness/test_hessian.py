"""Eigenvalues and traces against exact Hessians, known spectra and curvlinops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from exact import batches_of, exact_hessian, oracle_of, quadratic, whole_matrix
from tiny import bert, perceptron, points, sentences
from torch import nn

from sam_hf.sharpness import LossOracle, hessian_eigenvalues, hessian_trace
from sam_hf.sharpness import hessian as hessian_module
from sam_hf.sharpness import krylov as krylov_module


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 3, 3, padding=1),
            nn.BatchNorm1d(3),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(15, 3),
        )

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.layers(x.unsqueeze(1)), labels)}


def convolutional():
    torch.manual_seed(0)
    return Convolutional().double()


NETWORKS = {
    "perceptron": (perceptron, points),
    "convolutions": (convolutional, points),
    "bert": (lambda: bert(dropout=0.1, vocab_size=24, hidden_size=4, intermediate_size=4), sentences),
}


def bert_with_eager_attention():
    return bert(dropout=0.1, vocab_size=24, hidden_size=4, intermediate_size=4, attn_implementation="eager")


def exact_eigenvalues(matrix):
    return torch.linalg.eigvalsh(matrix.double()).flip(0)


@pytest.mark.parametrize("max_vectors", [None, 9, 30])
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_of_small_networks(name, max_vectors):
    make, data = NETWORKS[name][0], NETWORKS[name][1](12)
    exact = exact_eigenvalues(exact_hessian(bert_with_eager_attention() if name == "bert" else make(), data))[:5]
    found = hessian_eigenvalues(oracle_of(make(), data, 5), 5, max_vectors=max_vectors, max_products=400)
    assert found.converged
    torch.testing.assert_close(found.values, exact, rtol=1e-6, atol=0)
    assert found.ratio() == pytest.approx(float(exact[0] / exact[4]), rel=1e-6)
    # The residual is an upper bound of the distance to an eigenvalue
    assert ((found.values - exact).abs() <= found.residuals + 1e-12).all()


@pytest.mark.parametrize(
    "spectrum",
    [
        range(1, 41),
        [100.0, 50.0, 10.0, 9.9, 9.8] + [0.01 * i for i in range(35)],
        [3.0, 2.0, 1.0, 0.5, 0.4] + [-50.0, -20.0] + [0.0] * 33,  # more negative than positive
        [7.0] * 3 + [2.0] * 10 + [1.0] * 27,  # copies
        [5.0, 4.0] + [0.0] * 38,  # of low rank
        [0.0] * 40,
        [-float(i) for i in range(1, 41)],
        [1e-7, 5e-8] + [1e-9] * 38,
    ],
    ids=["spread", "outliers", "negative", "copies", "low rank", "zero", "all negative", "tiny"],
)
@pytest.mark.parametrize("max_vectors", [None, 8, 41])
def test_known_spectra(spectrum, max_vectors):
    oracle = quadratic(spectrum)
    found = hessian_eigenvalues(oracle, 5, max_vectors=max_vectors, eigenvectors=True)
    exact = torch.tensor(sorted(spectrum, reverse=True)[:5], dtype=torch.float64)
    largest = max(map(abs, spectrum))
    assert found.converged
    torch.testing.assert_close(found.values, exact, rtol=1e-6, atol=1e-9 * largest)
    vectors = found.vectors
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-8)
    errors = (vectors @ oracle.model.matrix - found.values[:, None] * vectors).norm(dim=1)
    torch.testing.assert_close(errors, found.residuals, rtol=1e-3, atol=1e-9 * max(largest, 1e-9))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_saves_products(name, monkeypatch):
    make, data = NETWORKS[name][0], NETWORKS[name][1](12)
    exact = exact_eigenvalues(exact_hessian(bert_with_eager_attention() if name == "bert" else make(), data))[0]
    oracle = oracle_of(make(), data, 5)
    started = hessian_eigenvalues(oracle, 1, tolerance=0.01)
    monkeypatch.setattr(oracle, "gradient", lambda: torch.zeros(oracle.dimension, dtype=oracle.dtype))  # a minimum
    blind = hessian_eigenvalues(oracle, 1, tolerance=0.01)
    assert started.products < blind.products
    for found in (started, blind):
        assert float(found.values[0]) == pytest.approx(float(exact), rel=1e-3)


def test_all_eigenvalues_of_a_tiny_model():
    oracle = quadratic(range(8))
    found = hessian_eigenvalues(oracle, 8)
    torch.testing.assert_close(found.values, torch.arange(7.0, -1, -1, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert found.products == 8


def test_float32_models():
    exact = exact_eigenvalues(exact_hessian(perceptron(), points(12)))[:5]
    found = hessian_eigenvalues(oracle_of(perceptron().float(), points(12, torch.float32)), 5)
    assert found.converged
    torch.testing.assert_close(found.values, exact, rtol=1e-4, atol=0)


def test_curvlinops_agrees():
    curvlinops = pytest.importorskip("curvlinops")
    sparse_linalg = pytest.importorskip("scipy.sparse.linalg")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)).double().eval()
    data, loss = points(12), nn.CrossEntropyLoss()
    pairs = [(batch["x"], batch["labels"]) for batch in batches_of(data, 5)]
    operator = curvlinops.HessianLinearOperator(network, loss, list(network.parameters()), pairs)
    oracle = LossOracle(network, pairs, loss=lambda model, pair: loss(model(pair[0]), pair[1]), disable_tqdm=True)
    v = torch.randn(oracle.dimension, dtype=torch.float64)
    torch.testing.assert_close(oracle.hvp(v), operator @ v, rtol=1e-9, atol=1e-12)
    expected = sparse_linalg.eigsh(operator.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    found = hessian_eigenvalues(oracle, 3).values
    torch.testing.assert_close(found, torch.tensor(expected).flip(0), rtol=1e-6, atol=0)


def test_memory_is_bounded_and_logged_beforehand(monkeypatch):
    """Only the vectors that were announced are stored, whatever the number of products."""
    messages, allocated = [], []
    monkeypatch.setattr(krylov_module.logger, "info", messages.append)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: allocated.append(size) or empty(*size, **options))
    oracle = quadratic(range(1, 61))
    calls, product = [], oracle.hvp
    monkeypatch.setattr(oracle, "hvp", lambda v: calls.append(len(messages)) or product(v))
    found = hessian_eigenvalues(oracle, 2, max_vectors=5, max_products=1000)
    assert found.products == len(calls) > 20
    assert [size for size in allocated if size[-1] == 60] == [(5, 60)]
    assert len(messages) == 1 and "5 vectors" in messages[0] and calls[0] == 1


def test_default_memory_fits_a_hundred_million_parameters(monkeypatch):
    """In addition to the vectors there are the weights, and four vectors in a product."""
    large, small = (SimpleNamespace(dimension=int(size), dtype=torch.float32) for size in (100e6, 1e6))
    vectors = hessian_module._affordable(large, 5)
    assert vectors >= 7 and (vectors + 1 + 4) * 100e6 * 4 < 7 * 2**30
    assert hessian_module._affordable(small, 5) == 40  # no restart where there is room


def test_missing_convergence_is_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(hessian_module.logger, "warning", messages.append)
    found = hessian_eigenvalues(quadratic(range(1, 61)), 5, max_products=8)
    assert not found.converged and found.products == 8
    assert len(messages) == 1 and "not all converged after 8 products" in messages[0]
    assert (found.residuals > 1e-4 * found.values).any()


def test_a_loss_that_overflows():
    oracle = quadratic(range(10))
    with torch.no_grad():
        oracle.model.matrix[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        hessian_eigenvalues(oracle, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 11}, "k=11 is not allowed: it must be a number from 1 to 10"),
        ({"k": 3, "max_vectors": 4}, "max_vectors=4"),
        ({"k": 5, "max_products": 4}, "max_products=4"),
    ],
    ids=str,
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hessian_eigenvalues(quadratic(range(10)), **options)
    with pytest.raises(ValueError, match="to=5 is not allowed: it must be a number from 1 to 2"):
        hessian_eigenvalues(quadratic(range(10)), 2).ratio()


# --- Trace ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sketch", "probes"), [(0, 64), (8, 32)])
def test_trace_is_within_its_error_bar(sketch, probes):
    """Over 40 seeds, about the expected numbers are within two standard errors and within half of one."""
    data = points(12)
    exact = float(exact_hessian(perceptron(), data).trace())
    errors = []
    for seed in range(40):
        found = hessian_trace(oracle_of(perceptron(), data, 12, seed=seed), sketch=sketch, probes=probes)
        errors.append((found.value - exact) / found.standard_error)
    assert sum(abs(error) < 2 for error in errors) >= 35
    assert abs(sum(errors) / 40) < 0.6
    assert sum(abs(error) < 0.5 for error in errors) < 30


def test_a_sketch_is_worth_its_products():
    """For a spectrum with outliers, the error at the same number of products is far below Hutchinson's."""
    spectrum = [100.0, 60.0, 30.0] + [0.1] * 57
    plus = hessian_trace(quadratic(spectrum), sketch=5, probes=10)
    plain = hessian_trace(quadratic(spectrum), sketch=0, probes=20)
    assert plus.products == plain.products == 20
    assert plus.standard_error < plain.standard_error / 50
    assert abs(plus.value - sum(spectrum)) <= 3 * plus.standard_error + 1e-9


@pytest.mark.parametrize("spectrum", [[5.0, 3.0] + [0.0] * 18, [0.0] * 20, [float(i) for i in range(20)]], ids=str)
def test_a_sketch_of_the_whole_range_is_exact(spectrum):
    found = hessian_trace(quadratic(spectrum), sketch=20, probes=2)
    assert found.value == pytest.approx(sum(spectrum), abs=1e-9)
    assert found.standard_error < 1e-9


def test_trace_of_a_diagonal_matrix_takes_one_probe():
    """The probes are vectors of signs, for which zᵀ D z = tr D."""
    oracle = quadratic(range(10))
    oracle.model.matrix.copy_(torch.diag(torch.arange(10.0)))
    assert hessian_trace(oracle, sketch=0, probes=2).samples.tolist() == pytest.approx([45.0, 45.0])


def test_trace_of_adapters():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=1, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(bert(attn_implementation="eager"), config).double()
    oracle = oracle_of(model, sentences(4))
    found = hessian_trace(oracle, sketch=0, probes=64)
    assert abs(found.value - float(whole_matrix(oracle).trace())) < 3 * found.standard_error

"""The spectral density's moments against those of exact Hessians."""

from __future__ import annotations

import pytest
import torch
from exact import exact_hessian, oracle_of, quadratic
from tiny import perceptron, points

from sam_hf.sharpness import hessian_spectral_density


def orthogonal(size):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(6), dtype=torch.float64)).Q


def exact_moment(matrix, power):
    return float(torch.linalg.matrix_power(matrix, power).trace()) / len(matrix)


@pytest.mark.parametrize("max_vectors", [2, 5, 20])
def test_moments_of_a_small_network(max_vectors):
    """The moments do not depend on the memory, with orthogonal probes and a quadrature exact to degree 2·10 − 1."""
    data = points(12)
    matrix = exact_hessian(perceptron(), data)
    oracle = oracle_of(perceptron(), data, 5)
    density = hessian_spectral_density(oracle, probes=orthogonal(len(matrix)), steps=10, max_vectors=max_vectors)
    for power in range(9):
        assert density.moment(power) == pytest.approx(exact_moment(matrix, power), rel=1e-3, abs=1e-9)


def test_a_quadrature_is_exact_to_its_degree_and_not_beyond():
    oracle = quadratic(torch.linspace(0.1, 5, 30).tolist())
    probe = torch.randn(1, 30, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    density = hessian_spectral_density(oracle, probes=probe, steps=4)
    unit = probe[0] / probe[0].norm()

    def exact(power):
        return float(unit @ torch.linalg.matrix_power(oracle.model.matrix, power) @ unit)

    assert density.nodes.shape == density.weights.shape == (1, 4)
    for power in range(8):
        assert density.moment(power) == pytest.approx(exact(power), rel=1e-10)
    assert density.moment(8) != pytest.approx(exact(8), rel=1e-4)


def test_random_probes_are_within_their_error():
    data = points(12)
    matrix = exact_hessian(perceptron(), data)
    density = hessian_spectral_density(oracle_of(perceptron(), data, 12), probes=200, steps=6)
    for power in (1, 2, 3):
        assert abs(density.moment(power) - exact_moment(matrix, power)) < 3 * density.moment_error(power)
    assert density.moment_error(1) < 0.2 * density.moment(1)
    assert density.moment(0) == pytest.approx(1)


def test_many_steps_in_little_memory():
    """Steps beyond the stored vectors produce copies of eigenvalues, and leave the measure unchanged."""
    spectrum = [50.0, 20.0, *torch.linspace(-1, 1, 58).tolist()]
    probe = torch.randn(1, 60, generator=torch.Generator().manual_seed(8))
    # In float32, where rounding destroys orthogonality early
    oracle = quadratic(spectrum)
    oracle.model.float()
    oracle = type(oracle)(oracle.model, [{"b": torch.zeros(1, 60)}], disable_tqdm=True)
    little = hessian_spectral_density(oracle, probes=probe, steps=50, max_vectors=2)
    much = hessian_spectral_density(oracle, probes=probe, steps=50, max_vectors=60)
    assert (little.nodes > 49).sum() > 1 == (much.nodes > 49).sum()
    for power in (1, 2, 5):
        assert little.moment(power) == pytest.approx(much.moment(power), rel=1e-4)
    grid = torch.linspace(-2, 52, 400)
    torch.testing.assert_close(little.density(grid, 0.5), much.density(grid, 0.5), rtol=0, atol=0.01)


def test_density_integrates_to_one_and_shows_the_eigenvalues():
    spectrum = [9.0] * 10 + [0.0] * 30
    oracle = quadratic(spectrum)
    density = hessian_spectral_density(oracle, probes=orthogonal(40), steps=30)
    assert (density.weights.sum(1) - 1).abs().max() < 1e-12  # also for rows that ended after two steps
    grid = torch.linspace(-3, 12, 3000, dtype=torch.float64)
    values = density.density(grid, sigma=0.3)
    assert float(torch.trapezoid(values, grid)) == pytest.approx(1, abs=1e-6)
    around_nine = (grid > 6).double()
    assert float(torch.trapezoid(values * around_nine, grid)) == pytest.approx(0.25, abs=1e-3)
    assert density.grid().min() < 0 and density.grid().max() > 9
    assert float(torch.trapezoid(density.density(), density.grid())) == pytest.approx(1, abs=1e-3)


def test_a_hessian_of_zero():
    density = hessian_spectral_density(quadratic([0.0] * 10), probes=3, steps=4)
    assert [density.moment(power) for power in range(3)] == [1, 0, 0]
    assert density.density().isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "probes=0"),
        ({"steps": 0}, "steps=0"),
        ({"max_vectors": 1}, "max_vectors=1"),
        ({"probes": torch.ones(2, 9)}, r"probes.shape=\(2, 9\) is not allowed: it must be \(n, 10\)"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hessian_spectral_density(quadratic(range(10)), **options)
    with pytest.raises(ValueError, match="sigma=0"):
        hessian_spectral_density(quadratic(range(10)), probes=1, steps=2).density(sigma=0)

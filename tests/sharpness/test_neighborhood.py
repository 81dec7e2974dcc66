"""m-sharpness, adaptive and random-direction sharpness against closed forms on quadratics, and a loop by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from exact import batch_of, batches_of, oracle_of, quadratic
from reference import dual_direction, equal_weights, sam_gradient, split_into_groups
from tiny import flat, loss_of, perceptron, points, trainer_of
from torch import nn

from sam_hf.sharpness import LossOracle, adaptive_sharpness, m_sharpness, random_direction_sharpness

INF = math.inf
SPECTRUM = [5.0, 3.0, 1.0, 1.0, 0.5, 0.5, 0.2, 0.1, 0.0, -1.0]


def gradients(oracle, m):
    """Return ∇L_B(w) of every group of m examples, on the quadratic."""
    rows = torch.cat([batch["b"] for batch in oracle.batches])
    w, matrix = oracle.model.w(), oracle.model.matrix
    return [matrix @ w + part.mean(0) for part in rows.split(m)], [len(part) for part in rows.split(m)]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("p", [2, INF])
def test_m_sharpness_of_a_quadratic(p, m):
    """p = 2: ρ‖g‖ + ρ²/2 gᵀAg/‖g‖²; p = ∞: ρ‖g‖₁ + ρ²/2 sᵀAs with s = sign(g). For any m and batches of 2."""
    rho, oracle = 0.3, quadratic(SPECTRUM)
    matrix = oracle.model.matrix
    found = m_sharpness(oracle, rho, m=m, p=p)
    gs, sizes = gradients(oracle, m)
    expected = []
    for g in gs:
        direction = g / g.norm() if p == 2 else g.sign()
        first = g.norm() if p == 2 else g.abs().sum()
        expected.append(float(rho * first + rho**2 / 2 * direction @ matrix @ direction))
    assert found.values.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.examples.tolist() == sizes
    assert found.mean == pytest.approx(sum(v * n for v, n in zip(expected, sizes, strict=True)) / 6, rel=1e-9)
    assert found.worst == pytest.approx(max(expected), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("m", [2, 5])
def test_the_perturbed_loss_is_the_one_that_training_would_see(m, steps):
    """It equals the naive reference of SAM itself, on a network in evaluation mode."""
    data, model = points(10), perceptron()
    found = m_sharpness(oracle_of(model, data, 5), 0.2, m=m, ascent_steps=steps)
    for index in range(10 // m):
        group = split_into_groups(equal_weights([data[index * m : (index + 1) * m]]), m, m)
        step = sam_gradient(loss_of(model), flat(model), group, 0.2, 2.0, steps)
        assert float(found.losses[index]) == pytest.approx(step.loss, rel=1e-10)
        assert float(found.values[index]) == pytest.approx(step.perturbed_loss - step.loss, rel=1e-8)


def test_more_ascent_steps_find_a_worse_point():
    oracle = quadratic(SPECTRUM)
    one, many = (m_sharpness(oracle, 1.0, m=6, ascent_steps=steps).mean for steps in (1, 20))
    assert many > one * 1.001


def test_it_is_what_training_logs(tmp_path):
    """It equals the `sam_sharpness` of an update at the same weights, on the same examples."""
    data = points(8)
    trainer = trainer_of(perceptron(), data, tmp_path, per_device_train_batch_size=8, max_steps=1, sam_rho=0.2)
    oracle = LossOracle(perceptron(), batches_of(data, 8))
    expected = m_sharpness(oracle, 0.2, m=8).mean
    trainer.train()
    logged = next(row["sam_sharpness"] for row in trainer.state.log_history if "sam_sharpness" in row)
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("p", [2, INF])
def test_adaptive_sharpness_of_a_quadratic(p, eta):
    """ε = ρ T d(T g), with T = |w| + η for the weight and 1 for the bias."""
    rho, oracle = 0.3, quadratic(SPECTRUM)
    w, matrix = oracle.model.w(), oracle.model.matrix
    scale = torch.cat([w[:6].abs() + eta, torch.ones(4, dtype=torch.float64)])
    (g,), _ = gradients(oracle, 6)
    epsilon = rho * scale * dual_direction(scale * g, p)
    expected = float(g @ epsilon + epsilon @ matrix @ epsilon / 2)
    assert adaptive_sharpness(oracle, rho, m=6, p=p, eta=eta).mean == pytest.approx(expected, rel=1e-9)


def test_adaptive_sharpness_does_not_see_rescaled_layers():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(self.second(torch.relu(self.first(x))), labels)}

    plain = Pair().double()
    rescaled = copy.deepcopy(plain)
    with torch.no_grad():
        rescaled.first.weight *= 10
        rescaled.second.weight /= 10
    for p in (2, INF):
        a, b = (adaptive_sharpness(oracle_of(model), 0.1, p=p, eta=0.0).mean for model in (plain, rescaled))
        assert a == pytest.approx(b, rel=1e-9)
    a, b = (m_sharpness(oracle_of(model), 0.1).mean for model in (plain, rescaled))
    assert a != pytest.approx(b, rel=0.1)


def test_random_directions_on_a_quadratic():
    """p = 2: E = ρ² tr A/2P; p = ∞: E = ρ² tr A/2, on average, at any gradient."""
    rho, oracle = 0.5, quadratic(SPECTRUM)
    trace = sum(SPECTRUM)
    for p, expected in ((2, rho**2 * trace / 20), (INF, rho**2 * trace / 2)):
        found = random_direction_sharpness(oracle, rho, p=p, directions=3000)
        assert abs(found.mean - expected) < 3 * found.standard_error
        assert len(found.values) == 3000 and found.worst == float(found.values.max())
        assert set(found.losses.tolist()) == {oracle.loss()}


def test_random_directions_have_the_norm():
    for p, adaptive in ((2, False), (INF, False), (2, True), (INF, True)):
        oracle = quadratic([1.0] * 10)
        at_w, seen = oracle.model.w(), []
        oracle.model.register_forward_hook(lambda *_, oracle=oracle, seen=seen: seen.append(oracle.model.w()))
        random_direction_sharpness(oracle, 0.5, p=p, directions=2, adaptive=adaptive, eta=0.1)
        scale = torch.cat([at_w[:6].abs() + 0.1, torch.ones(4, dtype=torch.float64)]) if adaptive else 1
        moved = [(w - at_w) / scale for w in seen if not torch.equal(w, at_w)]
        assert len(moved) == 6  # three batches each
        for epsilon in moved:
            assert float(torch.linalg.vector_norm(epsilon, p)) == pytest.approx(0.5, rel=1e-9)


def test_a_radius_of_zero_is_no_rise():
    oracle = quadratic(SPECTRUM)
    assert not m_sharpness(oracle, 0.0).values.any()
    assert not random_direction_sharpness(oracle, 0.0).values.any()


def test_a_gradient_that_is_not_finite_is_not_a_number():
    model = perceptron()
    with torch.no_grad():
        model.second.bias.fill_(float("inf"))
    assert m_sharpness(oracle_of(model)).values.isnan().all()


@pytest.mark.parametrize("options", [{"rho": -1.0}, {"rho": INF}, {"p": 1}, {"m": 0}, {"ascent_steps": 0}], ids=str)
def test_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        m_sharpness(quadratic(SPECTRUM), **options)


def test_batches_that_cannot_be_cut():
    packed = [{"x": batch_of(points(4))["x"], "labels": batch_of(points(4))["labels"], "lengths": torch.ones(2)}]
    with pytest.raises(ValueError, match="m=3 needs a part of a batch"):
        m_sharpness(LossOracle(perceptron(), packed), m=3)

"""Slices of the loss against closed forms on quadratics, and filter normalisation as the paper defines it."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import oracle_of, quadratic
from tiny import bert, flat, perceptron, points, sentences
from torch import nn

from sam_hf.sharpness import (
    direction_between,
    filter_normalized,
    loss_between,
    loss_slice,
    loss_surface,
    random_directions,
)

SPECTRUM = [5.0, 3.0, 1.0, 1.0, 0.5, 0.5, 0.2, 0.1, 0.0, -1.0]


def test_a_surface_of_a_quadratic():
    oracle = quadratic(SPECTRUM)
    matrix, w = oracle.model.matrix, oracle.model.w()
    b = torch.cat([batch["b"] for batch in oracle.batches]).mean(0)
    directions = random_directions(oracle)
    kept = directions.clone()
    alphas, betas = [-2.0, 0.0, 1.5], torch.linspace(-1, 1, 4, dtype=torch.float64)
    losses = loss_surface(oracle, directions, alphas, betas)

    def exact(alpha, beta):
        point = w + alpha * directions[0] + beta * directions[1]
        return float(point @ matrix @ point / 2 + b @ point)

    assert torch.equal(directions, kept)
    assert losses.shape == (3, 4)
    for i, alpha in enumerate(alphas):
        assert losses[i].tolist() == pytest.approx([exact(alpha, beta) for beta in betas.tolist()], rel=1e-10)
    line = loss_slice(oracle, directions[0], alphas)
    assert line.tolist() == pytest.approx([exact(alpha, 0.0) for alpha in alphas], rel=1e-10)
    assert float(line[1]) == oracle.loss()  # bit for bit


def test_second_differences_are_the_curvature():
    oracle = oracle_of(perceptron())
    d = random_directions(oracle, 1)[0]
    h = 1e-3
    low, middle, high = loss_slice(oracle, d, [-h, 0.0, h]).tolist()
    assert (high - 2 * middle + low) / h**2 == pytest.approx(float(d @ oracle.hvp(d)), rel=1e-4)
    assert (high - low) / (2 * h) == pytest.approx(float(d @ oracle.gradient()), rel=1e-4)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x, labels):
        features = self.norm(self.convolution(x)).mean((2, 3))
        return {"loss": nn.functional.cross_entropy(self.linear(features), labels)}


def test_filters_have_the_norms_of_the_models_own():
    torch.manual_seed(0)
    model = Convolution().double()
    with torch.no_grad():
        model.linear.weight[0].zero_()
    oracle = oracle_of(model, [{"x": torch.randn(2, 4, 4).double(), "labels": torch.tensor(1)}] * 2)
    raw = random_directions(oracle)
    normalized = filter_normalized(oracle, raw)
    assert normalized.shape == raw.shape == (2, oracle.dimension)
    for before, after in zip(raw, normalized, strict=True):
        parts = dict(zip(oracle.parameters, zip(oracle.split(before), oracle.split(after), strict=True), strict=True))
        for name, (old, new) in parts.items():
            weight = oracle.parameters[name].detach()
            if weight.dim() == 1:
                assert not new.any(), name  # biases and BatchNorm
                continue
            for index, own in enumerate(weight):
                # Li et al.: d_ij ← d_ij/‖d_ij‖ · ‖θ_ij‖
                torch.testing.assert_close(new[index], old[index] / old[index].norm() * own.norm())
    assert torch.equal(filter_normalized(oracle, raw[0]), normalized[0])


def test_slices_do_not_see_the_scale_of_filters():
    """Filters before a ReLU are scaled by ten and the next layer's columns by a tenth: the slice is the same."""

    def pair(scale):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
        with torch.no_grad():
            layers[0].weight *= scale
            layers[2].weight /= scale
        return layers

    lines, raw = [], []
    for scale in (1, 10):
        model = pair(scale)
        data = [{"x": e["x"], "labels": e["labels"]} for e in points(10)]
        oracle = oracle_of(
            model, data, loss=lambda model, batch: nn.functional.cross_entropy(model(batch["x"]), batch["labels"])
        )
        directions = random_directions(oracle, 1)
        lines.append(loss_slice(oracle, filter_normalized(oracle, directions)[0], [-1.0, -0.5, 0.7]))
        raw.append(loss_slice(oracle, directions[0], [-1.0, -0.5, 0.7]))
    torch.testing.assert_close(lines[0], lines[1])
    assert not torch.allclose(raw[0], raw[1], rtol=0.1)


def test_directions_are_shared_between_models():
    """Models of one architecture share them, whichever parameters are trained. Other seeds give other directions."""
    one, other = oracle_of(perceptron()), oracle_of(perceptron().float(), points(10, torch.float32))
    directions = random_directions(one, 2, seed=3)
    torch.testing.assert_close(directions.float(), random_directions(other, 2, seed=3))
    assert torch.equal(directions[:1], random_directions(one, 1, seed=3))
    assert not torch.allclose(directions[0], directions[1])
    assert not torch.allclose(directions, random_directions(one, 2, seed=4))
    assert torch.equal(random_directions(one), random_directions(one, seed=0))
    part = oracle_of(perceptron(), parameters=["second.weight"])
    weight = dict(zip(one.parameters, one.split(directions[0]), strict=True))["second.weight"]
    assert torch.equal(random_directions(part, 1, seed=3)[0], weight.flatten())
    assert float(directions.std()) == pytest.approx(1, abs=0.2)


def trained_elsewhere(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(9)).to(tensor))
    return other


def test_between_two_checkpoints():
    """Both ends are the checkpoints, including frozen parameters and BatchNorm's statistics."""
    model = perceptron(lambda: nn.BatchNorm1d(6))
    model.first.weight.requires_grad_(False)
    other = trained_elsewhere(model)
    here, there = oracle_of(model), oracle_of(other)
    losses = loss_between(here, other.state_dict(), [0.0, 0.25, 1.0])
    assert float(losses[0]) == here.loss()
    assert float(losses[2]) == pytest.approx(there.loss(), rel=1e-12)
    middle = copy.deepcopy(model)
    with torch.no_grad():
        for (name, tensor), end in zip(middle.state_dict().items(), other.state_dict().values(), strict=True):
            if tensor.is_floating_point():
                tensor.lerp_(end, 0.25)
            assert name in other.state_dict()
    assert float(losses[1]) == pytest.approx(oracle_of(middle).loss(), rel=1e-12)
    backward = loss_between(there, model.state_dict(), [1.0, 0.75, 0.0])
    torch.testing.assert_close(losses, backward, rtol=1e-10, atol=0)


def test_tied_weights_move_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Linear(5, 5, bias=False)

        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(self.second(torch.tanh(self.first(x))), labels)}

    torch.manual_seed(0)
    model = Tied().double()
    other = trained_elsewhere(model)
    assert float(loss_between(oracle_of(model), other.state_dict(), [1.0])[0]) == pytest.approx(
        oracle_of(other).loss(), rel=1e-12
    )


def test_a_direction_between_checkpoints():
    model = perceptron()
    other = trained_elsewhere(model)
    oracle = oracle_of(model)
    direction = direction_between(oracle, {f"module.{name}": t for name, t in other.state_dict().items()})
    torch.testing.assert_close(direction, flat(other) - flat(model))
    assert float(loss_slice(oracle, direction, [1.0])[0]) == pytest.approx(oracle_of(other).loss(), rel=1e-12)


def test_adapters_of_one_base_model():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(bert(), config).double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    adapters = {name: p for name, p in other.named_parameters() if p.requires_grad}  # and no base model
    oracle = oracle_of(model, sentences(4))
    assert float(loss_between(oracle, adapters, [1.0])[0]) == pytest.approx(
        oracle_of(other, sentences(4)).loss(), rel=1e-12
    )
    losses = loss_surface(oracle, filter_normalized(oracle, random_directions(oracle)), [0.0, 1.0], [0.0, 1.0])
    assert len(set(losses.flatten().tolist())) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda oracle: loss_between(oracle, {}, [0.0]), "first.weight has shape .* it is missing there"),
        (lambda oracle: direction_between(oracle, {"first.weight": torch.zeros(2)}), "it has shape .2,. there"),
        (
            lambda oracle: loss_surface(oracle, torch.zeros(2, 3), [0.0], [0.0]),
            r"directions.shape=\(2, 3\) is not allowed",
        ),
        (
            lambda oracle: loss_surface(oracle, random_directions(oracle, 1), [0.0], [1.0]),
            "betas=.1.0. is not allowed: .* without a second",
        ),
        (lambda oracle: random_directions(oracle, 0), "count=0"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(oracle_of(perceptron()))

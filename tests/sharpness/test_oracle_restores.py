"""A measurement changes no weights, buffers, gradients, modes or random number generators, even after exceptions."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from exact import batches_of, oracle_of
from tiny import Watch, assert_same, bert, perceptron, points, sentences, snapshot, trained, trainer_of
from torch import nn
from transformers import Trainer

from sam_hf.sharpness import (
    LossOracle,
    direction_between,
    filter_normalized,
    hessian_eigenvalues,
    hessian_spectral_density,
    hessian_trace,
    loss_between,
    loss_surface,
    m_sharpness,
    random_direction_sharpness,
    random_directions,
)
from sam_hf.update.random_state import RandomState

MEASUREMENTS = {
    "loss": LossOracle.loss,
    "gradient": LossOracle.gradient,
    "eigenvalues": lambda oracle: hessian_eigenvalues(oracle, 2),
    "trace": lambda oracle: hessian_trace(oracle, sketch=2, probes=2),
    "density": lambda oracle: hessian_spectral_density(oracle, probes=2, steps=3),
    "m-sharpness": lambda oracle: m_sharpness(oracle, 0.5, m=3, ascent_steps=2),
    "adaptive": lambda oracle: m_sharpness(oracle, 0.5, adaptive=True, p=float("inf")),
    "random direction": lambda oracle: random_direction_sharpness(oracle, 0.5, directions=2),
    "surface": lambda oracle: loss_surface(
        oracle, filter_normalized(oracle, random_directions(oracle)), [-1.0, 0.5], [0.1]
    ),
    "between": lambda oracle: loss_between(
        oracle, {name: tensor + 1 for name, tensor in oracle.model.state_dict().items()}, [0.3, 1.0]
    ),
    "direction between": lambda oracle: direction_between(oracle, oracle.model.state_dict()),
}


class Failure(Exception):
    pass


class Meddling(nn.Module):
    """A module that changes and replaces its buffers in evaluation mode, draws from every generator, and may fail."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(6))
        self.fails_after: float = float("inf")

    def forward(self, x):
        assert not self.training and not self.norm.training
        self.calls += 1
        self.last = x.detach()[0].to(self.last)
        random.random()
        np.random.rand()
        if self.calls >= self.fails_after:
            raise Failure
        return self.norm(x) + 1e-3 * torch.randn(6, dtype=x.dtype)


def state_of(model):
    return {
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "forward": model.__dict__.get("forward"),
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
    }


def prepared(middle=Meddling):
    model = perceptron(middle, dropout=0.5)
    model.first.bias.requires_grad_(False)
    model.dropout.eval()  # not the mode of its parent
    model.second.weight.grad = torch.ones_like(model.second.weight)
    return model


@pytest.mark.parametrize("product", ["auto", "finite_difference"])
@pytest.mark.parametrize("fails_after", [None, 2, 5], ids=lambda n: f"fails after {n}" if n else "goes well")
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_nothing_is_left_behind(name, fails_after, product):
    model = prepared()
    oracle = oracle_of(model, points(10), size=2, product=product)
    if fails_after:
        model.middle.fails_after = fails_after
    values, state, random_state = snapshot(model), state_of(model), RandomState()
    buffer, gradient = model.middle.last, model.second.weight.grad
    if fails_after and name != "direction between":  # this one makes no pass
        with pytest.raises(Failure):
            MEASUREMENTS[name](oracle)
    else:
        MEASUREMENTS[name](oracle)
    assert_same(snapshot(model), values)
    assert state_of(model) == state
    assert model.middle.last is buffer and model.second.weight.grad is gradient
    assert RandomState() == random_state


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_same_under_the_same_seed(name):
    def measured(**options):
        torch.manual_seed(random.randrange(1000))  # has no influence
        result = MEASUREMENTS[name](oracle_of(prepared(), points(10), **options))
        return result if isinstance(result, (float, torch.Tensor)) else vars(result)

    first, second = measured(), measured()
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_attention_is_put_back_after_an_exception():
    model = bert(attn_implementation="sdpa")
    oracle = oracle_of(model, sentences(4))
    oracle.hvp(torch.ones(oracle.dimension, dtype=torch.float64))
    seen = []

    def fail(*_):
        seen.append(model.config._attn_implementation)
        raise Failure

    model.classifier.register_forward_hook(fail)
    with pytest.raises(Failure):
        oracle.hvp(torch.ones(oracle.dimension, dtype=torch.float64))
    assert seen == ["eager"]
    assert model.config._attn_implementation == "sdpa"


def test_mixed_precision_is_left_out(tmp_path):
    """No autocast affects the results: neither accelerate's in `forward` nor one around the call."""
    data = points(8, torch.float32)
    trainer = trainer_of(perceptron().float(), data, tmp_path, bf16=True, max_steps=1, learning_rate=0.0)
    trainer.train()
    model = trainer.model
    wrapped = model.__dict__["forward"]
    plain = oracle_of(perceptron().float(), data)
    oracle = LossOracle.from_trainer(trainer)
    batch = batches_of(data, 8)[0]
    assert model(**batch)["loss"].item() != pytest.approx(plain.loss(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert oracle.loss() == pytest.approx(plain.loss(), rel=1e-6)
        torch.testing.assert_close(oracle.gradient(), plain.gradient(), rtol=1e-5, atol=1e-7)
    assert model.__dict__["forward"] is wrapped


def test_training_goes_on_as_if_nothing_had_been_measured(tmp_path):
    """The measurement is made by a callback in the middle of a run."""
    run = {"optim": "adamw_torch", "learning_rate": 0.01, "sam_rho": 0.1, "gradient_accumulation_steps": 2}
    data = points(32)
    plain = perceptron(lambda: nn.BatchNorm1d(6), dropout=0.3)
    trained(plain, data, tmp_path, **run)

    measured = perceptron(lambda: nn.BatchNorm1d(6), dropout=0.3)
    oracle = oracle_of(measured, points(8))
    found = []

    def measure(event, model):
        found.append(hessian_eigenvalues(oracle, 1).values.item() + m_sharpness(oracle).mean)

    trained(measured, data, tmp_path, callbacks=[Watch(measure)], **run)
    assert len(set(found)) > 6  # and the results followed the weights
    assert_same(snapshot(measured), snapshot(plain))


def test_counters_of_other_trainers_are_left_alone(tmp_path):
    class Counting(Trainer):
        def compute_loss(self, *args, **kwargs):
            self._metrics["eval"]["passes"].append(1)
            return super().compute_loss(*args, **kwargs)

    Counting.__module__ = "trl.trainer"
    trainer = trainer_of(perceptron(), points(8), tmp_path, trainer_class=Counting)
    trainer._metrics = before = defaultdict(lambda: defaultdict(list))
    LossOracle.from_trainer(trainer).gradient()
    assert trainer._metrics is before and not before

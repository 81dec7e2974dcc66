"""BatchNorm's running statistics: moved by the first pass only, by every pass, or by none."""

from __future__ import annotations

import pytest
import torch
from tiny import Perceptron, assert_same, flat, perceptron, points, snapshot, trained
from torch import nn

FEATURES = 6


class UserNorm(nn.BatchNorm1d):
    """A subclass with a buffer of its own that moves in training."""

    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("largest", torch.zeros(features))

    def forward(self, x):
        if self.training:
            self.largest.copy_(torch.maximum(self.largest, x.detach().amax(0)))
        return super().forward(x)


NORMS = {"BatchNorm": nn.BatchNorm1d, "SyncBatchNorm": nn.SyncBatchNorm, "subclass": UserNorm}


@pytest.fixture(params=NORMS)
def norm(request):
    return NORMS[request.param]


def model_of(norm, dropout=0.0) -> Perceptron:
    return perceptron(lambda: norm(FEATURES), dropout)


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved_once(model, batches):
    """The statistics after forward passes of a plain model in training mode."""
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(torch.stack([example["x"] for example in batch]))
    return buffers(model)


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 3}], ids=str)
def test_first_pass_alone_moves_the_statistics(tmp_path, norm, options):
    data = points(16)
    model = model_of(norm)
    trained(model, data, tmp_path, max_steps=1, gradient_accumulation_steps=4, sam_rho=0.5, **options)
    assert_same(buffers(model), moved_once(model_of(norm), [data[i : i + 4] for i in range(0, 16, 4)]))
    assert int(model.middle.num_batches_tracked) == 4


def test_first_follows_plain_training_over_many_updates(tmp_path, norm):
    model, plain = model_of(norm), model_of(norm)
    trained(model, points(32), tmp_path, sam_rho=1e-12)
    trained(plain, points(32), tmp_path, sam_method="none")
    for actual, expected in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_every_pass_moves_the_statistics_under_both(tmp_path, norm, steps):
    first, both = model_of(norm), model_of(norm)
    run = {"max_steps": 2, "sam_rho": 0.5, "sam_ascent_steps": steps}
    trained(first, points(32), tmp_path, **run)
    trained(both, points(32), tmp_path, sam_batch_norm="both", **run)
    assert int(first.middle.num_batches_tracked) == 2
    assert int(both.middle.num_batches_tracked) == 2 * (steps + 1)
    assert not torch.equal(first.middle.running_mean, both.middle.running_mean)
    # In training mode the statistics are written and not read: the weights cannot tell
    assert torch.equal(flat(first), flat(both))


def test_both_is_the_moving_average_over_the_passes(tmp_path):
    data, inputs = points(4), []
    model = model_of(nn.BatchNorm1d)
    model.middle.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    trained(model, data, tmp_path, max_steps=1, sam_rho=0.5, sam_batch_norm="both")
    assert len(inputs) == 2
    mean = torch.zeros(FEATURES, dtype=torch.float64)
    for x in inputs:
        mean = 0.9 * mean + 0.1 * x.mean(0)
    torch.testing.assert_close(model.middle.running_mean, mean)


def test_slices_move_the_statistics_once_each(tmp_path):
    data = points(4)
    model = model_of(nn.BatchNorm1d)
    trained(model, data, tmp_path, max_steps=1, sam_rho=0.5, sam_m=2)
    assert_same(buffers(model), moved_once(model_of(nn.BatchNorm1d), [data[:2], data[2:]]))


def with_statistics(norm, dropout=0.0):
    model = model_of(norm, dropout)
    generator = torch.Generator().manual_seed(3)
    model.middle.running_mean.copy_(torch.randn(FEATURES, generator=generator))
    model.middle.running_var.copy_(torch.rand(FEATURES, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize("options", [{}, {"sam_method": "none"}, {"sam_rho": 0.0}, {"sam_m": 2}], ids=str)
def test_frozen_never_moves_the_statistics(tmp_path, norm, options):
    model = with_statistics(norm)
    before = buffers(model)
    settings = {"sam_rho": 0.5} | options
    trained(model, points(32), tmp_path, sam_batch_norm="frozen", **settings)
    assert_same(buffers(model), before)


def test_frozen_normalises_as_in_evaluation_while_the_rest_trains(tmp_path):
    model = with_statistics(nn.BatchNorm1d, dropout=0.3)
    modes, inputs, outputs = [], [], []

    def look(module, args, output):
        modes.append((module.training, model.training, model.dropout.training))
        inputs.append(args[0].detach())
        outputs.append(output.detach())

    statistics = model.middle.running_mean.clone(), model.middle.running_var.clone()
    model.middle.register_forward_hook(look)
    trained(model, points(4), tmp_path, max_steps=1, sam_rho=0.5, sam_batch_norm="frozen")
    assert modes == [(False, True, True)] * 2
    normalised = nn.functional.batch_norm(inputs[0], *statistics)
    torch.testing.assert_close(outputs[0], normalised)
    # Nothing is left behind on the module
    assert "train" not in vars(model.middle)
    model.train()
    assert model.middle.training


def test_frozen_layers_can_still_be_trained(tmp_path):
    model = with_statistics(nn.BatchNorm1d)
    before = snapshot(model)
    trained(model, points(32), tmp_path, sam_batch_norm="frozen")
    assert not torch.equal(model.middle.weight, before["middle.weight"])
    assert not torch.equal(model.middle.bias, before["middle.bias"])

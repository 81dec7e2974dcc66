"""bf16 and fp16: ε under autocast, under a loss scale, and where the weights themselves are of low precision."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from tiny import Watch, assert_same, flat, perceptron, points, snapshot, trained, trainer_of
from torch import nn

from sam_hf import SAMTrainer
from sam_hf.methods import METHODS, Point, Products
from sam_hf.tensors.rounding import StochasticRounding


class HalfGradient(torch.autograd.Function):
    """The identity, whose gradient overflows as fp16 does."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().to(gradient.dtype)


class HalfGradientLayer(nn.Module):
    def forward(self, x):
        return HalfGradient.apply(x)


def single(size=32):
    return points(size, torch.float32)


def trained_with_scaler(output_dir, scale, middle=None, callbacks=(), **changes):
    model = perceptron(middle).float()
    trainer = trainer_of(model, single(), output_dir, callbacks=callbacks, sam_rho=0.1, **changes)
    if scale is not None:
        # accelerate makes no scaler on the CPU; `prepare` hands this one to the optimizer
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.train()
    return trainer


def updates(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def restoring_watch():
    """Callbacks that fail where an update or what follows it sees other weights than w, and their event log."""
    seen, begin = [], {}

    def check(event, model):
        seen.append(event)
        if event == "on_step_begin":
            begin.update(snapshot(model))
        elif event == "on_pre_optimizer_step":
            assert_same(snapshot(model), begin)

    return Watch(check), seen


def test_bf16_autocast_perturbs_and_restores(tmp_path):
    watch, seen = restoring_watch()
    model, plain = perceptron(dropout=0.2).float(), perceptron(dropout=0.2).float()
    trainer = trained(model, single(), tmp_path, callbacks=[watch], bf16=True, sam_rho=0.2)
    trained(plain, single(), tmp_path, bf16=True, sam_method="none")
    assert seen.count("on_pre_optimizer_step") == 6
    assert all(entry["sam_sharpness"] > 0 for entry in updates(trainer))
    # The weights are float32, so nothing of ε is rounded away
    assert not any("sam_perturbation_ratio" in entry for entry in updates(trainer))
    assert not torch.equal(flat(model), flat(plain))


@pytest.mark.parametrize("options", [{}, {"sam_p": 3.0}, {"sam_ascent_steps": 3}, {"sam_m": 2}], ids=str)
def test_perturbation_and_metrics_do_not_depend_on_the_loss_scale(tmp_path, options):
    # Powers of two scale floating-point numbers without rounding them
    unscaled, small, large = (trained_with_scaler(tmp_path, s, **options) for s in (None, 2.0**4, 2.0**16))
    assert_same(snapshot(small.model), snapshot(unscaled.model))
    assert_same(snapshot(large.model), snapshot(unscaled.model))
    names = ["loss", "sam_perturbed_loss", "sam_sharpness", "sam_ascent_grad_norm", "sam_skipped"]
    for a, b, c in zip(updates(unscaled), updates(small), updates(large), strict=True):
        assert [a[n] for n in names] == [b[n] for n in names] == [c[n] for n in names]


@pytest.mark.parametrize("options", [{}, {"sam_p": float("inf")}, {"sam_ascent_steps": 2}], ids=str)
def test_overflow_skips_perturbation_and_step(tmp_path, options):
    weights = []
    watch = Watch(lambda event, model: weights.append(flat(model)) if event == "on_step_end" else None)
    trainer = trained_with_scaler(tmp_path, 2.0**21, HalfGradientLayer, [watch], max_steps=12, **options)
    assert trainer.accelerator.scaler.get_scale() < 2.0**21
    before = flat(perceptron(HalfGradientLayer).float())
    skipped = [entry["sam_skipped"] for entry in updates(trainer)]
    assert set(skipped) == {0.0, 1.0}
    for entry, after in zip(updates(trainer), weights, strict=True):
        assert after.isfinite().all()
        overflowed = entry["sam_skipped"] == 1.0
        # The descent gradient may overflow as well: the scaler skips that step alone
        assert torch.equal(after, before) or not overflowed
        assert ("sam_ascent_grad_norm" in entry) != overflowed
        assert (entry["sam_sharpness"] == 0) == overflowed
        assert entry["sam_perturbed_loss"] - entry["loss"] == pytest.approx(entry["sam_sharpness"], abs=1e-6)
        before = after
    assert not torch.equal(weights[-1], weights[0])


def test_after_an_overflow_training_goes_on_as_if_it_had_not_been(tmp_path):
    # The same data in every update, so the updates that were skipped leave no trace
    weights = [flat(perceptron(HalfGradientLayer).float())]
    watch = Watch(lambda event, model: weights.append(flat(model)) if event == "on_step_end" else None)
    run = {"per_device_train_batch_size": 32}
    scaled = trained_with_scaler(tmp_path, 2.0**24, HalfGradientLayer, [watch], max_steps=12, **run)
    performed = sum(not torch.equal(a, b) for a, b in itertools.pairwise(weights))
    assert 0 < performed < 12
    expected = trained_with_scaler(tmp_path, None, max_steps=performed, **run)
    # Gradients were rounded to fp16 on the way
    assert float((flat(scaled.model) - flat(expected.model)).abs().max()) < 1e-4


def low_precision_run(output_dir, dtype=torch.bfloat16, callbacks=(), **changes):
    model = perceptron().to(dtype)
    settings = {"max_steps": 24, "learning_rate": 0.01} | changes
    return trained(model, points(32, dtype), output_dir, callbacks=callbacks, **settings)


def ratio(trainer):
    values = [entry["sam_perturbation_ratio"] for entry in updates(trainer)]
    return sum(values) / len(values)


def rounding_warnings(caplog):
    return [r for r in caplog.records if r.name.startswith("sam_hf") and "survives rounding" in r.getMessage()]


def test_small_epsilon_in_bf16_is_measured_and_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "sam_hf"):
        trainer = low_precision_run(tmp_path, sam_rho=0.001)
    assert ratio(trainer) < 0.7
    (warning,) = rounding_warnings(caplog)
    assert "sam_stochastic_rounding" in warning.getMessage()
    assert warning.levelno == logging.WARNING


def test_no_warning_for_the_noise_of_stochastic_rounding(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "sam_hf"):
        trainer = low_precision_run(tmp_path, sam_rho=0.001, sam_stochastic_rounding=True)
    assert min(entry["sam_perturbation_ratio"] for entry in updates(trainer)) < 0.9
    assert not rounding_warnings(caplog)


def test_large_epsilon_in_bf16_survives_without_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "sam_hf"):
        trainer = low_precision_run(tmp_path, sam_rho=0.5)
    assert ratio(trainer) == pytest.approx(1.0, abs=0.02)
    assert not rounding_warnings(caplog)


def test_ratio_is_the_share_of_epsilon_that_is_stored(tmp_path):
    """Against ε and w + ε taken from the pass itself."""
    stored = []

    class Observed(SAMTrainer):
        def compute_loss(self, model, *args, **kwargs):
            stored.append(flat(model).double())
            return super().compute_loss(model, *args, **kwargs)

    model = perceptron().bfloat16()
    trainer = trainer_of(model, points(4, torch.bfloat16), tmp_path, Observed, max_steps=1, sam_rho=0.01)
    batch = next(iter(trainer.get_train_dataloader()))
    model(**batch)["loss"].backward()
    g = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    model.zero_grad()
    trainer.train()
    w, perturbed = stored
    epsilon = 0.01 * g / g.norm()
    expected = (perturbed - w) @ epsilon / (epsilon @ epsilon)
    assert ratio(trainer) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"sam_stochastic_rounding": True}, {"sam_ascent_steps": 3}], ids=str)
def test_low_precision_weights_come_back_bit_for_bit(tmp_path, dtype, options):
    watch, seen = restoring_watch()
    low_precision_run(tmp_path, dtype, [watch], sam_rho=0.05, **options)
    assert seen.count("on_pre_optimizer_step") == 24


def test_stochastic_rounding_lets_a_small_epsilon_act(tmp_path):
    nearest = low_precision_run(tmp_path, sam_rho=0.002)
    stochastic = low_precision_run(tmp_path, sam_rho=0.002, sam_stochastic_rounding=True)
    assert ratio(nearest) < 0.7
    assert ratio(stochastic) == pytest.approx(1.0, abs=0.25)


def test_stochastic_rounding_follows_the_seed_and_draws_from_no_other_generator(tmp_path):
    runs = {
        name: low_precision_run(tmp_path, sam_rho=0.002, sam_stochastic_rounding=True, seed=seed)
        for name, seed in [("first", 1), ("again", 1), ("other", 2)]
    }
    assert_same(snapshot(runs["again"].model), snapshot(runs["first"].model))
    assert not torch.equal(flat(runs["other"].model), flat(runs["first"].model))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    StochasticRounding((0, 1))(torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)


VALUES = {
    # Between two neighbours, at various shares of the gap; the last ones are subnormal
    torch.bfloat16: [1.003, -1.003, 0.30001, -7.77, 3.0e38, -3.0e38, 3.7e-39, -3.7e-39, 2.0e-40],
    torch.float16: [1.0003, -1.0003, 0.30001, -7.777, 65000.5, -65000.5, 3.3e-6, -3.3e-6, 2.0e-8],
}


@pytest.mark.parametrize("dtype", VALUES)
def test_stochastic_rounding_is_unbiased(dtype):
    draws = 20_000
    for index, value in enumerate(VALUES[dtype]):
        values = torch.full((draws,), value, dtype=torch.float32)
        rounded = StochasticRounding((7, index))(values, dtype).double()
        neighbours = rounded.unique()
        assert len(neighbours) == 2, value
        low, high = neighbours.tolist()
        exact = float(values[0])
        assert low < exact < high
        # Nothing representable lies in between
        between = torch.tensor((low + high) / 2, dtype=torch.float64).to(dtype)
        assert float(between) in (low, high)
        share = (exact - low) / (high - low)
        standard_error = (high - low) * (share * (1 - share) / draws) ** 0.5
        assert abs(float(rounded.mean()) - exact) < 5 * standard_error, value


@pytest.mark.parametrize("dtype", VALUES)
def test_stochastic_rounding_keeps_what_is_representable(dtype):
    largest = torch.finfo(dtype).max
    exact = torch.tensor([0.0, -0.0, 1.0, -1.5, largest, -largest, torch.finfo(dtype).tiny, float("inf")]).to(dtype)
    patterns = torch.cat([exact, torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)])
    rounded = StochasticRounding((0,))(patterns.float(), dtype)
    assert torch.equal(rounded.view(torch.int16), patterns.view(torch.int16))


@pytest.mark.parametrize("dtype", VALUES)
def test_stochastic_rounding_does_not_overflow(dtype):
    largest = torch.finfo(dtype).max
    # As a float32 above the largest number, but not by half a gap
    above = torch.full((1000,), largest, dtype=torch.float32) * (1 + 2.0**-13)
    rounded = StochasticRounding((0,))(torch.cat([above, -above]), dtype)
    assert rounded.abs().eq(largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_update_gradient_of_g_and_s_is_rounded_once(dtype):
    """u = 9 s − 8 g, of which most cancels: rounding its parts first would be seen."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(1000, generator=generator).to(dtype)
    s = (g.float() + 0.1 * torch.randn(1000, generator=generator)).to(dtype)
    expected = (9.0 * s.float() - 8.0 * g.float()).to(dtype)
    ones = [torch.ones(())] * 3
    METHODS["wsam"](gamma=0.9).combine([g], [s], Products(*ones, torch.tensor(True)), Point([s], [s]))
    assert torch.equal(s, expected)

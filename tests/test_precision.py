"""Mixed precision: bf16 autocast, fp16's loss scale, and weights that are themselves bf16 or fp16."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import Trainer

from sam_hf import SAMTrainer
from sam_hf.rounding import StochasticRounding
from tiny import Watch, assert_same, flat, perceptron, points, relative_difference, snapshot, trained, trainer_of


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def watch_restoring():
    at = {}

    def check(event, model):
        if event == "on_step_begin":
            at["begin"] = snapshot(model)
        elif event == "on_pre_optimizer_step":
            assert_same(snapshot(model), at["begin"])

    return Watch(check)


def test_bf16_autocast(tmp_path):
    model = perceptron().float()
    start = flat(model)
    trainer = trained(
        model,
        points(32, torch.float32),
        tmp_path,
        callbacks=[watch_restoring()],
        bf16=True,
        sam_rho=0.2,
        gradient_accumulation_steps=2,
    )
    assert flat(model).isfinite().all() and not torch.equal(flat(model), start)
    assert all(sharpness > 0 for sharpness in history(trainer, "sam_sharpness"))
    assert not history(trainer, "sam_perturbation_ratio")  # the weights are float32


class FailsToStayFinite(SAMTrainer):
    """Overflows in given passes, counted from 0 over the run."""

    overflows_in: tuple[int, ...] = ()
    passes = 0

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.passes += 1
        return loss * torch.inf if self.passes - 1 in self.overflows_in else loss


def scaled_run(output_dir, loss_scale, overflows_in=(), callbacks=(), **options):
    """accelerate makes no scaler on the CPU: it is put where accelerate would have it."""
    model = perceptron().float()
    settings = {"sam_rho": 0.2, "trainer_class": FailsToStayFinite, "logging_nan_inf_filter": False, **options}
    trainer = trainer_of(model, points(32, torch.float32), output_dir, callbacks=callbacks, **settings)
    trainer.overflows_in = overflows_in
    if loss_scale is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale)
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("options", [{}, {"sam_p": 3.0}, {"sam_m": 2}, {"sam_ascent_steps": 2}], ids=str)
def test_loss_scale_cancels(tmp_path, options):
    expected, plain = scaled_run(tmp_path, None, **options)
    # A power of two scales floats exactly
    model, trainer = scaled_run(tmp_path, 2.0**16, **options)
    assert relative_difference(flat(model), flat(expected)) < 1e-6
    for key in ("sam_ascent_grad_norm", "sam_perturbed_loss", "loss"):
        assert history(trainer, key) == pytest.approx(history(plain, key), rel=1e-5)


def test_overflow_at_w_skips_the_update(tmp_path):
    weights = []

    def remember(event, model):
        if event == "on_step_end":
            weights.append(flat(model))

    # Both passes of the second update
    model, trainer = scaled_run(tmp_path, 8.0, overflows_in=(2, 3), callbacks=[Watch(remember)])
    assert torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[2], weights[1])
    assert flat(model).isfinite().all()
    assert history(trainer, "sam_skipped") == [0, 1, 0, 0, 0, 0]
    assert float(trainer.accelerator.scaler.get_scale()) == 4.0
    # Nothing is known of L(w+ε) in that update
    logged = [entry for entry in trainer.state.log_history if "sam_skipped" in entry]
    assert "sam_perturbed_loss" not in logged[1] and "sam_sharpness" not in logged[1]


def test_overflow_of_the_ascent_gradient_alone_makes_a_plain_update(tmp_path):
    model, trainer = scaled_run(tmp_path, 8.0, overflows_in=(0,), max_steps=1)
    plain, _ = scaled_run(tmp_path, 8.0, max_steps=1, sam_method="none")
    assert_same(snapshot(model), snapshot(plain))
    assert history(trainer, "sam_skipped") == [1]


def test_overflow_of_the_descent_gradient_is_the_scalers_business(tmp_path):
    model, _ = scaled_run(tmp_path, 8.0, overflows_in=(1,), max_steps=1)
    assert_same(snapshot(model), snapshot(perceptron().float()))


def test_not_finite_without_a_scaler_leaves_the_weights_to_trainer(tmp_path):
    """NaN in the update gradient is what plain training has too; ε adds none of its own."""
    model, _ = scaled_run(tmp_path, None, overflows_in=(0,), max_steps=1)
    plain, _ = scaled_run(tmp_path, None, max_steps=1, sam_method="none")
    assert_same(snapshot(model), snapshot(plain))


def low_precision_run(output_dir, dtype=torch.bfloat16, callbacks=(), **options):
    model = perceptron().to(dtype)
    return model, trained(model, points(32, dtype), output_dir, callbacks=callbacks, **options)


@pytest.fixture
def warnings_of_the_trainer():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("sam_hf.trainer")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def surviving(records):
    return [record for record in records if "survives rounding" in record.getMessage()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_come_back(tmp_path, dtype):
    for options in ({}, {"sam_stochastic_rounding": True}, {"sam_ascent_steps": 3}):
        model, _ = low_precision_run(tmp_path, dtype, callbacks=[watch_restoring()], sam_rho=0.05, **options)
        assert flat(model).isfinite().all()


def test_share_of_epsilon_that_survives_is_measured(tmp_path, warnings_of_the_trainer):
    _, large = low_precision_run(tmp_path, sam_rho=1.0)
    assert min(history(large, "sam_perturbation_ratio")) > 0.9
    assert not surviving(warnings_of_the_trainer)
    _, small = low_precision_run(tmp_path, sam_rho=1e-3)
    assert max(history(small, "sam_perturbation_ratio")) < 0.9
    assert len(surviving(warnings_of_the_trainer)) == 1
    _, nothing = low_precision_run(tmp_path, sam_rho=0.0)
    assert not history(nothing, "sam_perturbation_ratio")


def test_logged_ratio_is_the_projection_on_epsilon(tmp_path):
    """⟨δ, ε⟩/⟨ε, ε⟩ recomputed from the gradient at w and from the weights that the second pass saw."""
    model = perceptron().bfloat16()
    untouched, seen = copy.deepcopy(model), []
    model.register_forward_pre_hook(lambda module, _: seen.append(flat(module)))
    rho = 0.02
    trainer = trained(model, points(4, torch.bfloat16), tmp_path, sam_rho=rho, max_steps=1)
    batch = {key: torch.stack([example[key] for example in points(4, torch.bfloat16)]) for key in ("x", "labels")}
    untouched(**batch)["loss"].backward()
    g = torch.cat([p.grad.flatten() for p in untouched.parameters()]).double()
    epsilon = rho * g / g.norm()
    delta = seen[1].double() - seen[0].double()
    ratio = float(delta @ epsilon / (epsilon @ epsilon))
    assert history(trainer, "sam_perturbation_ratio") == [pytest.approx(ratio, rel=1e-4)]


def test_stochastic_rounding_lets_small_perturbations_act(tmp_path):
    options = {"sam_rho": 2e-3, "learning_rate": 1e-4, "max_steps": 40, "logging_steps": 40}
    _, nearest = low_precision_run(tmp_path, **options)
    model, stochastic = low_precision_run(tmp_path, sam_stochastic_rounding=True, **options)
    lost, kept = history(nearest, "sam_perturbation_ratio")[0], history(stochastic, "sam_perturbation_ratio")[0]
    assert lost < 0.7
    assert 0.8 < kept < 1.2
    again, _ = low_precision_run(tmp_path, sam_stochastic_rounding=True, **options)
    assert_same(snapshot(again), snapshot(model))
    other, _ = low_precision_run(tmp_path, sam_stochastic_rounding=True, **(options | {"sam_rho": 0.2, "seed": 1}))
    assert not torch.equal(flat(other), flat(model))


def test_stochastic_rounding_leaves_the_generators_alone(tmp_path):
    state = torch.get_rng_state()
    StochasticRounding((0, 1))(torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [1.0013, -1.0013, 0.3337, -2.9e-3, 1e-7, -3.1e-8, 65503.0 / 3])
def test_stochastic_rounding_is_unbiased(dtype, value):
    draws = 40_000
    values = torch.full((draws,), value, dtype=torch.float64)
    rounded = StochasticRounding((0, 3))(values, dtype).double()
    neighbours = rounded.unique()
    assert len(neighbours) <= 2
    low, high = float(neighbours.min()), float(neighbours.max())
    assert low <= value <= high
    assert abs(float(rounded.mean()) - value) <= 4 * (high - low) / 2 / draws**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_keeps_what_the_dtype_holds(dtype):
    info = torch.finfo(dtype)
    smallest_subnormal = info.smallest_normal * info.eps
    exact = torch.tensor([0.0, -0.0, 1.0, -1.5, info.max, info.min, smallest_subnormal, -smallest_subnormal])
    repeated = exact.double().repeat(200)
    rounded = StochasticRounding((1,))(repeated, dtype)
    assert torch.equal(rounded.double(), repeated)
    assert torch.equal(rounded.signbit(), repeated.signbit())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_near_the_largest_number_stays_finite(dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest * (1 - 1e-4), -largest * (1 - 1e-4), largest * (1 + 1e-6)], dtype=torch.float64)
    rounded = StochasticRounding((1,))(values.repeat(500), dtype)
    assert rounded.isfinite().all()


def test_stochastic_rounding_depends_on_its_key_alone():
    values = torch.linspace(-1, 1, 999, dtype=torch.float32)
    first, again, other = (StochasticRounding(key)(values, torch.bfloat16) for key in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_float32_weights_are_not_rounded(tmp_path):
    results = []
    for rounding in (False, True):
        model = perceptron().float()
        trained(model, points(32, torch.float32), tmp_path, sam_rho=0.1, sam_stochastic_rounding=rounding)
        results.append(snapshot(model))
    assert_same(*results)


def test_plain_low_precision_training_is_trainers(tmp_path):
    model, _ = low_precision_run(tmp_path, sam_method="none")
    plain, _ = low_precision_run(tmp_path, trainer_class=Trainer)
    assert_same(snapshot(model), snapshot(plain))

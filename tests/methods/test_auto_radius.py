"""`sam_rho_schedule="auto"`: the radius is a tenth of the length of the optimizer's last step."""

from __future__ import annotations

import pytest
import torch
from reference import SGD, AdamW, equal_weights, sam_gradient, split_into_groups
from tiny import Watch, assert_same, flat, loss_of, perceptron, points, snapshot, trained, trainer_of, windows_of
from transformers import Trainer

from sam_hf import SAMArguments
from sam_hf.arguments.schedules import AUTO_SHARE, uses_auto_radius
from sam_hf.methods import METHODS
from sam_hf.tensors.optimizers import StepLength

AUTO = {"sam_rho_schedule": "auto"}


def radii(trainer):
    return [entry.get("sam_rho", 0.0) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_follows_the_reference(tmp_path, optim):
    model, data = perceptron(), points(24)
    w, loss, learning_rates = flat(model), loss_of(model), [0.1 * (1 - t / 6) for t in range(6)]
    optimizer = SGD() if optim == "sgd" else AdamW(torch.zeros_like(w))
    expected, step = [], 0.0
    for window, lr in zip(windows_of(data, 4, 1, 6), learning_rates, strict=True):
        expected.append(0.1 * step)
        descent = sam_gradient(loss, w, split_into_groups(equal_weights(window), None, 4), expected[-1])
        moved = optimizer.step(w, descent.gradient, lr)
        w, step = moved, float((moved - w).norm())
    trainer = trained(model, data, tmp_path, optim=optim, learning_rate=0.1, lr_scheduler_type="linear", **AUTO)
    assert radii(trainer) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(flat(model), w, rtol=1e-9, atol=1e-12)


def test_the_first_update_is_plain(tmp_path):
    """There was no step yet."""
    plain, auto = perceptron(), perceptron()
    trained(plain, points(8), tmp_path, trainer_class=Trainer, max_steps=1)
    trainer = trained(auto, points(8), tmp_path, max_steps=1, **AUTO)
    assert_same(snapshot(auto), snapshot(plain))
    assert radii(trainer) == [0.0]


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.perturbs and m.radius_is_a_length])
def test_every_method_whose_radius_is_a_length(tmp_path, method):
    steps, before = [0.0], []

    def note(event, model):
        if event == "on_step_begin":
            before[:] = [flat(model)]
        elif event == "on_step_end":
            steps.append(float((flat(model) - before[0]).norm()))

    options = {"optim": "adamw_torch", "sam_method": method, **AUTO}
    trainer = trained(perceptron(), points(24), tmp_path, callbacks=[Watch(note)], **options)
    turns = [t for t in range(6) if t % METHODS[method].default_interval == 0]
    expected = [AUTO_SHARE * steps[t] if t in turns else 0.0 for t in range(6)]
    assert radii(trainer) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "follows"),
    [
        ({}, True),
        ({"sam_method": "looksam"}, True),
        ({"sam_rho": 0.05}, False),
        ({"sam_rho": 0}, False),
        ({"sam_rho_schedule": "constant"}, False),
        ({"sam_rho_schedule": "lr", "sam_rho_min": 0.01}, False),
        ({"sam_p": float("inf")}, False),
        ({"sam_method": "asam"}, False),
        ({"sam_method": "msam"}, False),
        ({"sam_method": "nbar"}, False),
        ({"sam_method": "none"}, False),
    ],
    ids=str,
)
def test_auto_is_the_default_without_a_radius(options, follows):
    assert uses_auto_radius(SAMArguments(**options)) == follows


def test_a_radius_that_is_chosen_later_is_kept(tmp_path):
    """A hyperparameter search does this. The schedule is read when training runs."""
    trainer = trainer_of(perceptron(), points(24), tmp_path, sam_rho=None)
    trainer.args.sam_rho = 0.03
    trainer.train()
    assert radii(trainer) == [0.03] * 6


def test_radius_zero_is_plain_training(tmp_path):
    plain, auto = perceptron(), perceptron()
    trained(plain, points(24), tmp_path, trainer_class=Trainer)
    trained(auto, points(24), tmp_path, sam_rho=0, **AUTO)
    assert_same(snapshot(auto), snapshot(plain))


def test_the_copy_of_the_weights_exists_only_during_the_step(tmp_path):
    kept = []
    trainer = trainer_of(
        perceptron(),
        points(24),
        tmp_path,
        callbacks=[Watch(lambda *_: kept.append(len(trainer._sam_method.step_length._before)))],
        **AUTO,
    )
    trainer.train()
    assert set(kept) == {0}


def test_a_step_without_gradients_has_no_length():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer, length = torch.optim.SGD([parameter], lr=0.1), StepLength()
    length.before_step(optimizer)
    optimizer.step()
    length.after_step(optimizer)
    assert length.value is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sam_rho": 0.05}, "sam_rho=0.05 is not allowed"),
        ({"sam_rho_min": 0.01}, "sam_rho_min=0.01 is not allowed: .*, the default without sam_rho"),
        ({"sam_p": float("inf")}, "sam_p=inf is not allowed"),
        ({"sam_method": "asam"}, "not allowed with sam_method='asam'"),
        ({"sam_method": "nbar"}, "not allowed with sam_method='nbar'"),
    ],
    ids=str,
)
def test_arguments_that_contradict_auto_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SAMArguments(**AUTO, **options)

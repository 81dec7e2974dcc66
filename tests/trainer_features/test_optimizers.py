"""Every family of `optim=` makes the same step on SAM's gradient as in a hand-written loop."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from by_hand import real_optimizer, train_by_hand, training_logs
from tiny import flat, perceptron, points, relative_difference, snapshot, trainer_of, windows_of

from sam_hf import SAMTrainer

RHO, UPDATES, BATCH = 0.2, 6, 4

FAMILIES = {
    "adamw_torch": {},
    "adamw_torch_fused": {},
    "adafactor": {},
    "sgd": {},
    "sgd, momentum": {"optim_args": "momentum=0.9"},
    "sgd, nesterov": {"optim_args": "momentum=0.9,nesterov=true"},
    "adagrad": {},
    "rmsprop": {},
    "rmsprop, centered": {"optim_args": "momentum=0.5,centered=true"},
    "schedule_free_adamw": {},
    # It does not move before its fifth update
    "schedule_free_radam": {"max_steps": 12},
    "schedule_free_sgd": {},
}
FOREACH = {"foreach": {"foreach": True}, "for loop": {"foreach": False}, "amsgrad": {"amsgrad": True}}


def settings_of(family: str, accumulation: int = 1) -> dict:
    name = family.split(",")[0]
    if name.startswith("schedule_free") and importlib.util.find_spec("schedulefree") is None:
        pytest.skip("schedulefree is not installed")
    # Schedule-free optimizers need no schedule
    schedule = "constant" if name.startswith("schedule_free") else "linear"
    return {
        "optim": name,
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "lr_scheduler_type": schedule,
        "max_steps": UPDATES,
        "max_grad_norm": 0.5,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": accumulation,
    } | FAMILIES.get(family, {})


def by_hand(data, output_dir, settings, rho=RHO, choose=None, after_update=lambda *_: None):
    """Return the weights and the history of the hand-written loop around the optimizer that Trainer makes."""
    model = perceptron()
    trainer = trainer_of(model, data, output_dir, **settings)
    if choose is not None:
        trainer.optimizer_cls_and_kwargs = choose
    updates = settings["max_steps"]
    trainer.create_optimizer_and_scheduler(num_training_steps=updates)
    optimizer = trainer.optimizer
    windows = windows_of(data, BATCH, settings["gradient_accumulation_steps"], updates)
    history = train_by_hand(
        model,
        windows,
        optimizer,
        trainer.lr_scheduler,
        rho=rho,
        max_grad_norm=0.5,
        after_update=lambda update: after_update(update, model, optimizer),
    )
    if hasattr(optimizer, "eval"):  # Trainer's evaluation and saving use the averaged weights
        optimizer.eval()
    return model, history


def sam_run(data, output_dir, settings, choose=None, **options):
    model = perceptron()
    trainer = trainer_of(model, data, output_dir, sam_rho=RHO, **settings, **options)
    if choose is not None:
        trainer.optimizer_cls_and_kwargs = choose
    trainer.train()
    if hasattr(trainer.optimizer, "eval"):
        trainer.optimizer.eval()
    return model, trainer


def assert_trained_the_same(actual, expected, without_sam, trainer, history):
    assert relative_difference(flat(actual), flat(expected)) < 1e-9
    # The comparison distinguishes SAM from plain training
    assert relative_difference(flat(without_sam), flat(expected)) > 1e-3
    for entry, update in zip(training_logs(trainer), history, strict=True):
        # Trainer sums up the loss in float32
        assert entry["loss"] == pytest.approx(update.loss, rel=1e-6)
        assert entry["sam_perturbed_loss"] == pytest.approx(update.perturbed_loss, rel=1e-9)
        assert entry["grad_norm"] == pytest.approx(update.grad_norm, rel=1e-9)
        assert entry["learning_rate"] == pytest.approx(update.learning_rate, rel=1e-12)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_step_on_the_sam_gradient(tmp_path, family, accumulation):
    settings, data = settings_of(family, accumulation), points(40)
    expected, history = by_hand(data, tmp_path, settings)
    without_sam, _ = by_hand(data, tmp_path, settings, rho=0.0)
    actual, trainer = sam_run(data, tmp_path, settings)
    assert_trained_the_same(actual, expected, without_sam, trainer, history)


@pytest.mark.parametrize("kind", FOREACH)
def test_optimizer_class_of_the_user(tmp_path, kind):
    """`optimizer_cls_and_kwargs` works for optimizers that have no name in `optim`."""
    settings, data = settings_of("adamw_torch", 2), points(40)
    choose = (torch.optim.AdamW, {"lr": 0.05} | FOREACH[kind])
    expected, history = by_hand(data, tmp_path, settings, choose=choose)
    without_sam, _ = by_hand(data, tmp_path, settings, rho=0.0, choose=choose)
    actual, trainer = sam_run(data, tmp_path, settings, choose=choose)
    assert_trained_the_same(actual, expected, without_sam, trainer, history)


def test_optimizer_and_scheduler_of_the_user(tmp_path):
    """`optimizers=(…)` may have two parameter groups with their own learning rates, and a parameter in neither."""
    data = points(40)

    def make():
        model = perceptron()
        groups = [
            {"params": [model.first.weight], "lr": 0.2},
            {"params": [model.second.weight, model.second.bias], "lr": 0.03, "momentum": 0.9},
        ]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    expected, optimizer, scheduler = make()
    history = train_by_hand(expected, windows_of(data, BATCH, 2, UPDATES), optimizer, scheduler, rho=RHO)
    actual, *optimizers = make()
    left_out = actual.first.bias.detach().clone()
    arguments = trainer_of(perceptron(), data, tmp_path, sam_rho=RHO, gradient_accumulation_steps=2).args
    trainer = SAMTrainer(model=actual, args=arguments, train_dataset=data, optimizers=tuple(optimizers))
    trainer.train()
    assert relative_difference(flat(actual), flat(expected)) < 1e-9
    assert torch.equal(actual.first.bias, left_out)
    # A parameter that the optimizer does not step is not in the ascent gradient, but counts in Trainer's own norm
    for entry, update in zip(training_logs(trainer), history, strict=True):
        assert entry["sam_ascent_grad_norm"] == pytest.approx(update.ascent_norm, rel=1e-9)
        assert entry["grad_norm"] == pytest.approx(update.grad_norm, rel=1e-9)


@pytest.mark.parametrize("family", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
def test_train_and_eval_modes_of_schedule_free(tmp_path, family):
    """Passes run at y and evaluation sees the average x; after an evaluation, training continues at y."""
    settings, data = settings_of(family), points(40)
    averages, passes_at, evaluated_at, hand_at = [], [], [], []

    def average(update, model, optimizer):
        hand_at.append(flat(model))
        if update % 2 == 0:
            optimizer.eval()
            averages.append(snapshot(model))
            optimizer.train()

    expected, _ = by_hand(data, tmp_path, settings, after_update=average)

    class Recording(SAMTrainer):
        def compute_loss(self, model, *args, **kwargs):
            if model.training:
                passes_at.append(flat(model))
            else:
                evaluated_at.append(snapshot(model))
            return super().compute_loss(model, *args, **kwargs)

    actual, _ = sam_run(
        data,
        tmp_path,
        settings,
        trainer_class=Recording,
        eval_dataset=points(4),
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=4,
    )
    assert relative_difference(flat(actual), flat(expected)) < 1e-9
    assert len(evaluated_at) == len(averages) == settings["max_steps"] // 2
    for seen, average_by_hand in zip(evaluated_at, averages, strict=True):
        torch.testing.assert_close(seen, average_by_hand, rtol=1e-9, atol=1e-12)
    ascents = passes_at[2::2]
    for seen, by_hand_at in zip(ascents, hand_at[:-1], strict=True):
        assert relative_difference(seen, by_hand_at) < 1e-9
    # x and y differ
    assert relative_difference(torch.cat([t.flatten() for t in averages[-1].values()]), hand_at[-1]) > 1e-4


def test_state_of_the_optimizer_is_that_of_the_hand_written_loop(tmp_path):
    """SAM keeps nothing in the optimizer: its state has the same keys and values as after the hand-written loop."""
    settings, data = settings_of("adamw_torch", 2), points(40)
    model = perceptron()
    optimizer, scheduler = real_optimizer(model, data, tmp_path, UPDATES, **settings)
    train_by_hand(model, windows_of(data, BATCH, 2, UPDATES), optimizer, scheduler, rho=RHO, max_grad_norm=0.5)
    _, trainer = sam_run(data, tmp_path, settings)
    actual, expected = trainer.optimizer.state_dict(), optimizer.state_dict()
    assert actual["state"].keys() == expected["state"].keys()
    for key, state in expected["state"].items():
        assert state.keys() == actual["state"][key].keys()
        torch.testing.assert_close(actual["state"][key], state, rtol=1e-9, atol=1e-14)
    assert actual["param_groups"] == expected["param_groups"]

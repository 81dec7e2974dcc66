"""Callbacks are called as by plain Trainer: for every event, in order, with the same state and control."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import assert_same, flat, perceptron, points, relative_difference, snapshot, trained, trainer_of
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from sam_hf import SAMTrainer

EVENTS = sorted(name for name in dir(TrainerCallback) if name.startswith("on_"))
# SAM changes these: losses and weights differ, more passes are counted, and metrics are added
OF_THE_WEIGHTS = {"log_history", "total_flos", "best_metric", "best_global_step", "best_model_checkpoint"}


class Listener(TrainerCallback):
    """Keeps the arguments of every event that do not depend on the weights."""

    def __init__(self):
        self.heard = []
        for event in EVENTS:
            setattr(self, event, lambda *args, event=event, **kwargs: self._hear(event, *args, **kwargs))

    def _hear(self, event, args, state, control, **kwargs):
        fields = {key: value for key, value in vars(state).items() if key not in OF_THE_WEIGHTS}
        fields["logged"] = [sorted(key for key in entry if not key.startswith("sam_")) for entry in state.log_history]
        given = {key: type(value).__name__ for key, value in kwargs.items()}
        logs = sorted(key for key in kwargs.get("logs") or {} if not key.startswith("sam_"))
        self.heard.append((event, copy.deepcopy(fields), copy.deepcopy(vars(control)), given, logs))


OPTIONS = {
    "accumulated": {"gradient_accumulation_steps": 2, "max_steps": 7},
    "each update": {"max_steps": 5, "logging_first_step": True, "logging_steps": 2, "eval_on_start": True},
    "epochs, ragged": {
        "gradient_accumulation_steps": 3,
        "max_steps": -1,
        "num_train_epochs": 2,
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    },
    "slices": {"gradient_accumulation_steps": 2, "sam_m": 2},
    "ascents": {"gradient_accumulation_steps": 2, "sam_ascent_steps": 3},
}


def listen(trainer_class, output_dir, **options):
    listener = Listener()
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 3}
    trained(
        perceptron(),
        points(30),
        output_dir,
        trainer_class=trainer_class,
        callbacks=[listener],
        eval_dataset=points(8),
        sam_rho=0.2,
        **(steps | options),
    )
    return listener.heard


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_event_in_order_with_the_same_state(tmp_path, options):
    plain = listen(Trainer, tmp_path / "run", **options)
    heard = listen(SAMTrainer, tmp_path / "run", **options)
    assert [call[0] for call in heard] == [call[0] for call in plain]
    # `on_predict` is the only event that no training run has
    missing = {"on_predict", "on_push_begin"} | ({"on_substep_end"} if "accumulation" not in str(options) else set())
    assert set(EVENTS) - {call[0] for call in heard} <= missing
    for call, expected in zip(heard, plain, strict=True):
        assert call == expected


class StopAt(TrainerCallback):
    """Sets a flag of the control when an event occurs for the n-th time."""

    def __init__(self, event, at, flag):
        self.left, self.flag = at, flag
        setattr(self, event, self._count)

    def _count(self, args, state, control, **kwargs):
        self.left -= 1
        if self.left == 0:
            setattr(control, self.flag, True)


@pytest.mark.parametrize("flag", ["should_training_stop", "should_epoch_stop"])
@pytest.mark.parametrize(("event", "at"), [("on_step_end", 3), ("on_substep_end", 5), ("on_step_begin", 2)])
def test_stopping_early(tmp_path, event, at, flag):
    """If a callback stops an epoch or the training, SAM stops too, also within a window, with the weights at w."""
    options = {
        "gradient_accumulation_steps": 3,
        "max_steps": -1,
        "num_train_epochs": 2,
        "optim": "adamw_torch",
    }

    def run(trainer_class, seen):
        class Watching(trainer_class):
            def training_step(self, model, inputs, num_items_in_batch=None):
                loss = super().training_step(model, inputs, num_items_in_batch)
                seen.append((self.state.global_step, self.state.epoch, inputs["x"].sum().item()))
                return loss

        model, listener = perceptron(), Listener()
        run_options = {"callbacks": [StopAt(event, at, flag), listener], "sam_rho": 0.2, **options}
        trainer = trainer_of(model, points(48), tmp_path, trainer_class=Watching, **run_options)
        at_begin = {}
        trainer.add_callback(_Remember(at_begin))
        trainer.train()
        return model, trainer, listener, at_begin

    plain_seen, seen = [], []
    _, plain, plain_listener, _ = run(Trainer, plain_seen)
    model, trainer, listener, at_begin = run(SAMTrainer, seen)
    assert seen == plain_seen
    assert trainer.state.global_step == plain.state.global_step
    assert [call[:3] for call in listener.heard] == [call[:3] for call in plain_listener.heard]
    # The weights are those after the last update
    assert torch.equal(flat(model), at_begin["last"])
    model.zero_grad()
    trainer.train()
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"sam_m": 4}, {"sam_m": 8}, {"sam_m": 2}], ids=str)
def test_gradients_of_a_window_that_a_callback_ends_early_go_into_the_next_update(tmp_path, options):
    """They do the same in plain training, which SAM equals when ρ is almost zero."""

    def run(trainer_class, at=3, **options):
        model = perceptron()
        callbacks = [StopAt("on_substep_end", at, "should_epoch_stop")]
        run_options = {"gradient_accumulation_steps": 4, "max_steps": -1, "num_train_epochs": 2}
        trained(
            model, points(64), tmp_path, trainer_class=trainer_class, callbacks=callbacks, **run_options, **options
        )
        return flat(model)

    plain, unbroken = run(Trainer), run(Trainer, at=-1)
    assert relative_difference(unbroken, plain) > 1e-3
    assert relative_difference(run(SAMTrainer, sam_rho=1e-9, **options), plain) < 1e-7


class _Remember(TrainerCallback):
    def __init__(self, weights):
        self.weights = weights

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights["last"] = flat(model)

    on_step_end = on_train_begin


def test_early_stopping_and_the_best_model(tmp_path):
    """The best w is saved, found and loaded at the end: its evaluation loss is the best that was logged."""
    saved = {}

    class Saved(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            saved[state.global_step] = snapshot(model)

    model = perceptron()
    # The step is too long: the loss falls, and then rises
    trainer = trainer_of(
        model,
        points(32),
        tmp_path,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2), Saved()],
        eval_dataset=points(32)[::2],
        max_steps=40,
        learning_rate=0.3,
        optim="sgd",
        lr_scheduler_type="constant",
        optim_args="momentum=0.9",
        sam_rho=0.3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert trainer.state.global_step == best + 2 * 2 < 40
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert_same(snapshot(model), saved[best])
    assert_same(load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors"), saved[best])
    assert trainer.evaluate()["eval_loss"] == losses[best]
    assert relative_difference(flat(model), torch.cat([t.flatten() for t in saved[best + 4].values()])) > 1e-3


class LoggingLoss:
    """Logs inside `compute_loss`, as many overrides do."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.log({"own": loss.item()})
        return loss


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 2}, {"sam_m": 4}], ids=str)
def test_what_compute_loss_logs_is_logged_once(tmp_path, options):
    def run(trainer_class):
        class Logging(LoggingLoss, trainer_class):
            pass

        listener = Listener()
        trainer = trained(
            perceptron(),
            points(32),
            tmp_path,
            trainer_class=Logging,
            callbacks=[listener],
            gradient_accumulation_steps=2,
            sam_rho=0.2,
            **options,
        )
        return trainer.state.log_history, [call[0] for call in listener.heard]

    (plain, plain_events), (history, events) = run(Trainer), run(SAMTrainer)
    assert events == plain_events
    own = [entry["own"] for entry in history if "own" in entry]
    assert len(own) == 2 * 6
    # What is logged is the loss at w; Trainer logs its mean
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses == pytest.approx([(a + b) / 2 for a, b in zip(own[::2], own[1::2], strict=True)], rel=1e-6)
    # At the first update w is the same as in plain training
    assert own[:2] == [entry["own"] for entry in plain if "own" in entry][:2]

"""Sharpness at every evaluation: the numbers are right and reach every place where metrics go."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch
from measured_training import NAMES, STEPS, built, entries, of_sharpness
from sharpness.exact import exact_hessian
from tiny import perceptron, points, trainer_of
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.utils import logging as hf_logging

from sam_hf import SAMTrainer, SharpnessCallback
from sam_hf.sharpness.losses import evaluation_loader

# --- The numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer_class", [SAMTrainer, Trainer])
def test_lambda_max_and_m_sharpness_are_exact_at_each_evaluation(tmp_path, trainer_class):
    seen = []

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step % 2 == 0:
                seen.append(copy.deepcopy(model))

    data = points(32)
    callback = SharpnessCallback(max_examples=32, rho=0.1, m=4, tolerance=1e-6)
    trainer = built(tmp_path, callback, trainer_class, max_steps=4)
    trainer.add_callback(Remember())
    trainer.train()
    assert len(entries(trainer)) == len(seen) == 2
    for entry, model in zip(entries(trainer), seen, strict=True):
        expected = torch.linalg.eigvalsh(exact_hessian(model, data))[-1]
        assert entry["eval_sharpness_lambda_max"] == pytest.approx(float(expected), rel=1e-8)
        assert entry["eval_sharpness_m"] == pytest.approx(rise_by_hand(model, data, 0.1, 4), rel=1e-9)


def rise_by_hand(model, data, rho, m):
    """Return the mean over groups of m examples of L(w + ρ g/‖g‖) − L(w)."""
    rises = []
    for start in range(0, len(data), m):
        batch = {key: torch.stack([e[key] for e in data[start : start + m]]) for key in data[0]}
        own = copy.deepcopy(model)
        loss = own(**batch)["loss"]
        gradient = torch.autograd.grad(loss, list(own.parameters()))
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        with torch.no_grad():
            for p, g in zip(own.parameters(), gradient, strict=True):
                p.add_(g, alpha=rho / float(norm))
        rises.append(own(**batch)["loss"].item() - loss.item())
    return sum(rises) / len(rises)


def test_the_loss_is_that_of_compute_loss(tmp_path):
    def twice(outputs, labels, num_items_in_batch=None):
        return 2 * nn.functional.cross_entropy(outputs["logits"], labels)

    callback = SharpnessCallback(max_examples=32, tolerance=1e-6)
    trainer = built(tmp_path, callback, compute_loss_func=twice)
    expected = 2 * torch.linalg.eigvalsh(exact_hessian(trainer.model, points(32)))[-1]
    assert trainer.evaluate()["eval_sharpness_lambda_max"] == pytest.approx(float(expected), rel=1e-8)


def test_the_dataset_can_be_another(tmp_path):
    data = points(48)
    callback = SharpnessCallback(data[40:], max_examples=100, tolerance=1e-6)
    trainer = built(tmp_path, callback, data=data)
    expected = torch.linalg.eigvalsh(exact_hessian(trainer.model, data[40:]))[-1]
    assert trainer.evaluate()["eval_sharpness_lambda_max"] == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_stays_serves_no_other_dataset(tmp_path, first):
    """With persistent workers, Trainer keeps the evaluation loader and returns it for every dataset."""
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = built(tmp_path, **options)
    if not first:
        trainer.get_eval_dataloader()
    loader = evaluation_loader(trainer, trainer.train_dataset)
    assert loader.dataset is trainer.train_dataset
    assert trainer.get_eval_dataloader().dataset is trainer.eval_dataset
    assert trainer.args.dataloader_persistent_workers


def test_nothing_finite_is_nan_and_training_goes_on(tmp_path, caplog):
    model = perceptron()
    model.second.weight.data.fill_(float("inf"))
    trainer = built(tmp_path, SharpnessCallback(), model=model, max_steps=2)
    hf_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        trainer.train()
    hf_logging.disable_propagation()
    assert np.isnan(entries(trainer)[0]["eval_sharpness_lambda_max"])
    assert "is NaN" in caplog.text


# --- Where they go ----------------------------------------------------------------------------------------------


class Tracker(TrainerCallback):
    def __init__(self):
        self.logs, self.metrics = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.metrics.append(dict(metrics))


class Copying:
    """A trainer whose `log` passes on a copy, as sentence-transformers' trainer does."""

    def log(self, logs, *args, **kwargs):
        super().log(dict(logs), *args, **kwargs)


@pytest.mark.parametrize("copies", [False, True])
def test_trackers_history_and_return_value(tmp_path, copies):
    tracker = Tracker()
    trainer_class = type("CopyingTrainer", (Copying, SAMTrainer), {}) if copies else SAMTrainer
    # The tracker is added first, as those of `report_to` are
    trainer = trainer_of(
        perceptron(),
        points(32),
        tmp_path,
        trainer_class=trainer_class,
        callbacks=[tracker, SharpnessCallback(max_examples=8)],
        eval_dataset=points(8),
        **STEPS,
    )
    trainer.train()
    returned = trainer.evaluate()
    trainer.save_metrics("eval", returned)
    logged = [logs for logs in tracker.logs if "eval_loss" in logs]
    assert len(logged) == len(tracker.metrics) == 4
    for logs, metrics, entry in zip(logged, tracker.metrics, entries(trainer), strict=True):
        assert of_sharpness(logs).keys() == NAMES
        assert of_sharpness(metrics) == of_sharpness(logs) == of_sharpness(entry)
    assert of_sharpness(returned) == of_sharpness(logged[-1])
    assert of_sharpness(json.loads((tmp_path / "all_results.json").read_text())) == of_sharpness(returned)
    assert not any(of_sharpness(logs) for logs in tracker.logs if "eval_loss" not in logs)


def test_the_best_model_can_be_the_flattest(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True, "max_steps": 8}
    trainer = built(
        tmp_path,
        SharpnessCallback(max_examples=16),
        metric_for_best_model="sharpness_lambda_max",
        greater_is_better=False,
        learning_rate=0.5,
        **options,
    )
    trainer.train()
    values = {entry["step"]: entry["eval_sharpness_lambda_max"] for entry in entries(trainer)}
    best = min(values, key=values.get)
    assert best != max(values, key=values.get)
    assert trainer.state.best_metric == values[best]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    # The best model is loaded at the end and measured again, although no update was made since the last evaluation
    assert trainer.evaluate()["eval_sharpness_lambda_max"] == pytest.approx(values[best], rel=1e-6)
    state = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert [e["eval_sharpness_lambda_max"] for e in state["log_history"] if "eval_loss" in e] == list(values.values())


def test_prefixes_and_several_datasets_of_which_one_is_measured(tmp_path, monkeypatch):
    measured = []
    measure = SharpnessCallback._measure
    monkeypatch.setattr(SharpnessCallback, "_measure", lambda *a: measured.append(1) or measure(*a))
    sets = {"a": points(8), "b": points(16)[8:]}
    trainer = built(tmp_path, SharpnessCallback(max_examples=8), eval_dataset=sets, max_steps=4)
    trainer.train()
    assert len(measured) == 2
    for a, b in zip(entries(trainer, "eval_a_loss"), entries(trainer, "eval_b_loss"), strict=True):
        assert a["eval_a_sharpness_lambda_max"] == b["eval_b_sharpness_lambda_max"]
    returned = trainer.evaluate(points(8), metric_key_prefix="test")
    assert {name.replace("eval", "test", 1) for name in NAMES} == of_sharpness(returned).keys()
    trainer.model.first.weight.data.mul_(1.1)
    trainer.evaluate(points(8))
    assert len(measured) == 3


def test_prediction_and_the_summary_of_training_have_none(tmp_path):
    trainer = built(tmp_path, SharpnessCallback(max_examples=8), eval_strategy="no")
    result = trainer.train()
    assert not of_sharpness(result.metrics)
    assert not of_sharpness(trainer.predict(points(8)).metrics)
    assert not any(of_sharpness(entry) for entry in trainer.state.log_history)


def test_the_argument_is_the_callback(tmp_path):
    options = {"sharpness_examples": 8, "sharpness_rho": 0.1, "sharpness_m": 2}
    of_callback = built(tmp_path, SharpnessCallback(max_examples=8, rho=0.1, m=2)).evaluate()
    trainer = built(tmp_path, sharpness_every_eval=True, **options)
    of_argument = trainer.evaluate()
    for name in NAMES - {"eval_sharpness_runtime"}:
        assert of_argument[name] == of_callback[name]
    assert not of_sharpness(built(tmp_path, **options).evaluate())
    assert not of_sharpness(built(tmp_path, sam_method="none").evaluate())
    # No second callback is added to the user's own
    own = built(tmp_path, SharpnessCallback(), sharpness_every_eval=True)
    assert sum(isinstance(c, SharpnessCallback) for c in own.callback_handler.callbacks) == 1

"""Sharpness at every evaluation: the right numbers, everywhere that metrics go, and training none the wiser."""

from __future__ import annotations

import copy
import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sharpness.exact import exact_hessian
from tiny import assert_same, bert, perceptron, points, sentences, snapshot, trained, trainer_of
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.utils import logging as hf_logging

from sam_hf import SAMArguments, SAMTrainer, SAMTrainingArguments, SharpnessCallback
from sam_hf.rng import RandomState
from sam_hf.sharpness.losses import evaluation_loader

NAMES = {"eval_sharpness_lambda_max", "eval_sharpness_m", "eval_sharpness_runtime"}
STEPS = {"eval_strategy": "steps", "eval_steps": 2, "sam_rho": 0.2}


def entries(trainer, key="eval_loss"):
    return [entry for entry in trainer.state.log_history if key in entry]


def of_sharpness(metrics):
    return {key: value for key, value in metrics.items() if "sharpness" in key and "sam_" not in key}


def built(output_dir, callback=None, trainer_class=SAMTrainer, model=None, data=None, **options):
    data = points(32) if data is None else data
    options = STEPS | {"eval_dataset": data[:8]} | options
    trainer = trainer_of(
        perceptron() if model is None else model,
        data,
        output_dir,
        trainer_class=trainer_class,
        callbacks=[callback] if callback is not None and trainer_class is SAMTrainer else [],
        **options,
    )
    if callback is not None and trainer_class is Trainer:
        callback.add_to(trainer)
    return trainer


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
    """Mean over groups of m of L(w + ρ g/‖g‖) − L(w)."""
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
    """Trainer keeps the evaluation's loader then, and hands it out whatever it is asked for."""
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
    """As sentence-transformers' trainer, whose `log` hands on a copy."""

    def log(self, logs, *args, **kwargs):
        super().log(dict(logs), *args, **kwargs)


@pytest.mark.parametrize("copies", [False, True])
def test_trackers_history_and_return_value(tmp_path, copies):
    tracker = Tracker()
    trainer_class = type("CopyingTrainer", (Copying, SAMTrainer), {}) if copies else SAMTrainer
    # The tracker is there first, as those of `report_to` are
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
    # Loaded at the end, and measured anew though the update is the last one's
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
    # The user's own callback is not doubled
    own = built(tmp_path, SharpnessCallback(), sharpness_every_eval=True)
    assert sum(isinstance(c, SharpnessCallback) for c in own.callback_handler.callbacks) == 1


# --- Training is the same ---------------------------------------------------------------------------------------


def lora():
    model = bert(dropout=0.1)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1)).double()


class Draws(nn.Module):
    """Dropout by hand, from every generator there is, in evaluation too."""

    def forward(self, x):
        return x * (1 + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.rand(()).to(x))


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        example = points(32)[index]
        return {**example, "x": example["x"] + 0.1 * torch.randn(5).double() + 0.1 * random.random()}


CASES = {
    "sam": ({}, lambda: perceptron(dropout=0.2), None),
    "plain": ({"sam_method": "none", "optim": "adamw_torch"}, lambda: perceptron(dropout=0.2), None),
    "shuffled": ({"train_sampling_strategy": "random", "num_train_epochs": 1}, perceptron, None),
    "BatchNorm": ({"gradient_accumulation_steps": 2}, lambda: perceptron(lambda: nn.BatchNorm1d(6)), None),
    "random": ({}, lambda: perceptron(Draws), None),
    "augmented": ({}, perceptron, Augmented()),
    "looksam": ({"sam_method": "looksam", "eval_steps": 1}, perceptron, None),
    "bert": (
        {"gradient_checkpointing": True, "include_num_input_tokens_seen": "all"},
        lambda: bert(dropout=0.1),
        sentences(32),
    ),
    "lora": ({"gradient_accumulation_steps": 2}, lora, sentences(32)),
    "schedule-free": ({"optim": "schedule_free_adamw", "learning_rate": 0.01}, perceptron, None),
}


@pytest.mark.parametrize(("options", "make", "data"), CASES.values(), ids=CASES)
def test_training_is_the_same_bit_for_bit(tmp_path, options, make, data):
    def run(*callbacks):
        model = make()
        trainer = trained(
            model,
            points(32) if data is None else data,
            tmp_path,
            callbacks=callbacks,
            eval_dataset=sentences(8) if data is not None and isinstance(data, list) else points(8),
            **(STEPS | {"save_strategy": "steps", "save_steps": 3} | options),
        )
        return model, trainer, RandomState()

    plain, expected, random_after = run()
    model, trainer, found = run(SharpnessCallback(max_examples=6, m=3))
    assert all(of_sharpness(entry).keys() == NAMES for entry in entries(trainer))
    assert_same(snapshot(model), snapshot(plain))
    assert found == random_after
    assert [m.training for m in model.modules()] == [m.training for m in plain.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert trainer.state.total_flos == expected.state.total_flos
    assert trainer.state.num_input_tokens_seen == expected.state.num_input_tokens_seen
    for entry, other in zip(trainer.state.log_history, expected.state.log_history, strict=True):
        timed = {key for key in entry if key.endswith(("_runtime", "_per_second"))} | NAMES
        assert {k: v for k, v in entry.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}


def test_training_resumes_the_same(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = built(tmp_path, SharpnessCallback(max_examples=6), **options)
    whole.train()
    again = built(tmp_path, SharpnessCallback(max_examples=6), **options)
    again.train(resume_from_checkpoint=str(Path(tmp_path) / "checkpoint-3"))
    assert_same(snapshot(again.model), snapshot(whole.model))
    last, expected = entries(again)[-1], entries(whole)[-1]
    assert last["eval_sharpness_lambda_max"] == expected["eval_sharpness_lambda_max"]


# --- Refused before anything is computed ------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(points(32))


def test_a_stream_or_nothing_to_measure_on(tmp_path):
    for data, said in ((Stream(), "Stream without a length"), (None, "None")):
        with pytest.raises(ValueError, match=f"train_dataset, which is (a )?{said}"):
            trainer_of(perceptron(), data, tmp_path, callbacks=[SharpnessCallback()], eval_dataset=points(8))
    trainer = trainer_of(
        perceptron(), Stream(), tmp_path, callbacks=[SharpnessCallback(points(8))], eval_dataset=points(8), **STEPS
    )
    trainer.train()
    assert of_sharpness(trainer.evaluate())


def test_rounded_weights(tmp_path):
    with pytest.raises(ValueError, match="bfloat16, whose rounding"):
        built(tmp_path, SharpnessCallback(), model=perceptron().bfloat16())
    with pytest.raises(ValueError, match="bf16_full_eval"):
        SAMTrainingArguments("out", use_cpu=True, bf16_full_eval=True, sharpness_every_eval=True)
    with pytest.raises(ValueError, match="bf16_full_eval"):
        built(tmp_path, SharpnessCallback(), bf16_full_eval=True)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_weights(tmp_path, kind):
    trainer = built(tmp_path, sam_method="none")
    setattr(trainer, f"is_{kind}_enabled", True)
    with pytest.raises(ValueError, match="whose weights are sharded"):
        SharpnessCallback().add_to(trainer)


def test_a_model_that_comes_to_be_unfit(tmp_path):
    trainer = built(tmp_path, SharpnessCallback())
    trainer.model.bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_plain_trainer_that_it_was_not_added_to(tmp_path):
    trainer = trainer_of(
        perceptron(),
        points(32),
        tmp_path,
        trainer_class=Trainer,
        callbacks=[SharpnessCallback()],
        **STEPS | {"eval_strategy": "no"},
    )
    with pytest.raises(ValueError, match=r"add_to\(trainer\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_examples", 0), ("rho", -1.0), ("rho", float("nan")), ("m", 0), ("tolerance", 0.0), ("max_products", 0)],
)
def test_arguments_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        SharpnessCallback(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sharpness_every_eval", "yes"),
        ("sharpness_examples", 0),
        ("sharpness_rho", -0.1),
        ("sharpness_m", 1.5),
    ],
)
def test_fields_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        SAMArguments(**{field: value})

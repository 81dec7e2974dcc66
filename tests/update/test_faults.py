"""Faults in the middle of training: numbers that are not finite, interrupts, a disk that is full."""

from __future__ import annotations

import resource

import pytest
import torch
from tiny import Watch, assert_same, bert, flat, perceptron, points, sentences, snapshot, trainer_of
from torch import nn
from transformers import Trainer, TrainerCallback

import sam_hf.update.perturbation
from sam_hf import SAMTrainer
from sam_hf.trainer.checkpoints import last_whole_checkpoint

ASCENT, DESCENT = 1, 2


class NotFinite(SAMTrainer):
    """`value` in the loss, or only in its gradient, of some passes of the third update."""

    passes, in_loss, value = (), False, torch.nan

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.calls = 0
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.calls += 1
        outputs = model(**inputs)
        loss = outputs["loss"]
        if self.state.global_step == 2 and self.calls in self.passes:
            if self.in_loss:
                loss = loss * self.value
            else:
                loss.register_hook(lambda gradient: gradient * self.value)
        return (loss, outputs) if return_outputs else loss


def run_with(output_dir, passes, in_loss=False, value=torch.nan, **options):
    """Weights before and after the third update, and the trainer."""
    faulty = type("Faulty", (NotFinite,), {"passes": passes, "in_loss": in_loss, "value": value})
    model, at = perceptron(), {}

    def check(event, model):
        if event == "on_step_begin":
            at["begin"] = flat(model)
        elif event == "on_pre_optimizer_step":
            assert torch.equal(flat(model), at["begin"])
            at["gradient"] = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()

    trainer = trainer_of(
        model, points(32), output_dir, faulty, [Watch(check)], **({"max_steps": 3, "sam_rho": 0.2} | options)
    )
    trainer.train()
    return at, model, trainer


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("sam_hf") and r.levelname == "WARNING"]


@pytest.mark.parametrize("in_loss", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_ascent_that_is_not_finite_leaves_a_plain_update(tmp_path, caplog, in_loss, value):
    at, model, trainer = run_with(tmp_path, (ASCENT,), in_loss, value)
    # The descent pass ran at w itself
    expected = perceptron()
    torch.nn.utils.vector_to_parameters(at["begin"], expected.parameters())
    batch = points(32)[8:12]
    expected(**{key: torch.stack([example[key] for example in batch]) for key in batch[0]})["loss"].backward()
    torch.testing.assert_close(at["gradient"], torch.cat([p.grad.flatten() for p in expected.parameters()]))
    assert flat(model).isfinite().all()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["sam_skipped"] for entry in entries] == [0.0, 0.0, 1.0]
    # Trainer leaves a loss that is not finite out of its mean, and so are the others of that update
    assert entries[2].get("sam_sharpness") == (None if in_loss else 0.0)
    assert entries[2].get("sam_perturbed_loss") == (None if in_loss else pytest.approx(entries[2]["loss"], rel=1e-6))
    (message,) = warnings_of(caplog)
    assert "100% of the ascent gradients" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("passes", [(DESCENT,), (ASCENT, DESCENT)])
def test_update_gradient_that_is_not_finite_is_trainers_own_affair(tmp_path, passes, value):
    """No scaler: plain Trainer steps with it. So does SAM, from w and not from somewhere else."""
    at, model, _ = run_with(tmp_path, passes, value=value)
    assert at["begin"].isfinite().all()
    assert not at["gradient"].isfinite().all()
    # SGD with learning rate .05
    expected = at["begin"] - 0.05 * at["gradient"]
    torch.testing.assert_close(flat(model), expected, equal_nan=True)


@pytest.mark.parametrize("filtered", [True, False])
def test_loss_that_is_not_finite_is_logged_as_trainer_does(tmp_path, filtered):
    class Plain(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            return loss * torch.nan if self.state.global_step == 2 else loss

    options = {"logging_nan_inf_filter": filtered, "logging_steps": 3}
    plain = trainer_of(perceptron(), points(32), tmp_path, Plain, max_steps=3, **options)
    plain.train()
    # ρ so small that the first two losses are plain Trainer's
    _, _, trainer = run_with(tmp_path, (ASCENT, DESCENT), in_loss=True, sam_rho=1e-12, **options)
    logged, expected = (t.state.log_history[0]["loss"] for t in (trainer, plain))
    assert logged == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert (logged == logged) is filtered


def test_interrupt_in_the_middle_of_restoring(tmp_path, monkeypatch):
    restores, model, at = [], perceptron(), {}
    copy = torch._foreach_copy_

    def interrupted(*args):
        restores.append(1)
        if len(restores) == 2:
            raise KeyboardInterrupt
        return copy(*args)

    monkeypatch.setattr(sam_hf.update.perturbation.torch, "_foreach_copy_", interrupted)
    remember = Watch(lambda event, model: at.update({event: flat(model)}))
    trainer = trainer_of(model, points(32), tmp_path, callbacks=[remember], sam_rho=0.2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.equal(flat(model), at["on_step_begin"])


class FullDisk(TrainerCallback):
    """No file may grow over `limit` bytes from the end of update 3 on, as on a disk that is full."""

    def __init__(self, limit):
        self.limit = limit

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# Too little for the weights, and for the optimizer's state
@pytest.mark.parametrize("limit", [2_000, 14_000])
def test_full_disk_while_saving(tmp_path, caplog, limit):
    def make(folder, callbacks=()):
        run = {"sam_rho": 0.1, "max_steps": 5, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1}
        model = bert(dropout=0.2, dtype=torch.float32)
        return model, trainer_of(model, sentences(32), folder, callbacks=callbacks, **run)

    whole, trainer = make(tmp_path / "whole")
    trainer.train()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    _, trainer = make(tmp_path / "full", [FullDisk(limit)])
    try:
        with pytest.raises(Exception) as error:  # torch and safetensors have errors of their own
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(error.value, AssertionError)
    (message,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR" and r.name.startswith("sam_hf"))
    assert "step 3" in message and "resume_from_checkpoint=True" in message
    assert last_whole_checkpoint(tmp_path / "full") == str(tmp_path / "full" / "checkpoint-2")
    resumed, again = make(tmp_path / "full")
    again.train(resume_from_checkpoint=True)
    assert_same(snapshot(resumed), snapshot(whole))


class Failing(nn.Module):
    """Raises `error` in its n-th call, whichever pass that is."""

    def __init__(self):
        super().__init__()
        self.calls, self.fails_at, self.error = 0, None, None

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.error
        return x


FAULTY_RUN = {
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "sam_rho": 0.3,
    "max_steps": 3,
}


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """Weights that the run below ends with where nothing fails, by m."""
    models = {m: perceptron(Failing) for m in (None, 4)}
    for m, model in models.items():
        trainer_of(model, points(24), tmp_path_factory.mktemp("unharmed"), sam_m=m, **FAULTY_RUN).train()
    return {m: snapshot(model) for m, model in models.items()}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory.")], ids=repr)
@pytest.mark.parametrize("fails_at", [5, 6, 7, 8])  # two ascent and two descent passes of the second update
@pytest.mark.parametrize("m", [None, 4])
def test_any_error_in_any_pass(tmp_path, unharmed, error, fails_at, m):
    model, at = perceptron(Failing), {}
    model.middle.fails_at, model.middle.error = fails_at, error
    remember = Watch(lambda event, model: at.update({event: snapshot(model)}))
    trainer = trainer_of(model, points(24), tmp_path, callbacks=[remember], sam_m=m, **FAULTY_RUN)
    with pytest.raises(type(error)):
        trainer.train()
    assert_same(snapshot(model), at["on_step_begin"])
    resumed = perceptron(Failing)
    trainer_of(resumed, points(24), tmp_path, sam_m=m, **FAULTY_RUN).train(resume_from_checkpoint=True)
    assert_same(snapshot(resumed), unharmed[m])

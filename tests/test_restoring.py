"""The weights are w again, bit for bit, whenever anyone but a pass looks: after updates, exceptions and resumes."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny import (
    Watch,
    assert_same,
    bert,
    flat,
    perceptron,
    points,
    sentences,
    snapshot,
    trained,
    trainer_of,
)
from torch import nn

DROPOUT_RUN = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
}


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 3}, {"sam_m": 4}, {"sam_m": 2}], ids=str)
def test_no_callback_sees_perturbed_weights(tmp_path, options):
    seen, at = [], {}

    def check(event, model):
        seen.append(event)
        if event == "on_step_begin":
            at["begin"] = snapshot(model)
        elif event == "on_pre_optimizer_step":
            assert_same(snapshot(model), at["begin"])
        elif event == "on_step_end":
            at["end"] = snapshot(model)
        else:
            assert_same(snapshot(model), at["end"])

    trainer = trainer_of(
        perceptron(),
        points(32),
        tmp_path,
        callbacks=[Watch(check)],
        eval_dataset=points(8),
        gradient_accumulation_steps=2,
        sam_rho=0.3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        **options,
    )
    trainer.train()
    assert set(seen) == set(Watch.EVENTS)


class Failure(Exception):
    pass


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise Failure


class Faulty(nn.Module):
    """Fails at its n-th call, in forward or in backward; keeps what BatchNorm looked like after each call."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.fails_at, self.where, self.calls = None, None, 0
        self.statistics = []

    def forward(self, x):
        self.calls += 1
        x = self.norm(x)
        self.statistics.append(snapshot(self.norm))
        if self.calls == self.fails_at:
            if self.where == "forward":
                raise Failure
            return FailingBackward.apply(x)
        return x


@pytest.mark.parametrize("where", ["forward", "backward"])
# Passes of the second update, three each: first ascent, second ascent, descent
@pytest.mark.parametrize("fails_at", [4, 5, 6])
def test_exception_in_any_pass(tmp_path, fails_at, where):
    model = perceptron(Faulty)
    fault = model.middle
    fault.fails_at, fault.where = fails_at, where
    at = {}

    def remember(event, model):
        if event == "on_step_begin":
            at["begin"] = flat(model)

    trainer = trainer_of(model, points(32), tmp_path, callbacks=[Watch(remember)], sam_rho=0.3, sam_ascent_steps=2)
    with pytest.raises(Failure):
        trainer.train()
    assert fault.calls == fails_at
    assert torch.equal(flat(model), at["begin"])
    assert_same(snapshot(fault.norm), fault.statistics[3])

    fault.fails_at = None
    trainer.train()
    assert trainer.state.global_step == 6
    assert flat(model).isfinite().all()
    assert not torch.equal(flat(model), at["begin"])


def test_trainer_after_an_exception_trains_as_a_new_one(tmp_path):
    model = perceptron(Faulty)
    model.middle.fails_at, model.middle.where = 2, "forward"
    start = snapshot(model)
    trainer = trainer_of(model, points(32), tmp_path, sam_rho=0.3)
    with pytest.raises(Failure):
        trainer.train()
    model.load_state_dict(start)
    model.middle.fails_at = None
    trainer.train()
    fresh = perceptron(Faulty)
    trained(fresh, points(32), tmp_path, sam_rho=0.3)
    assert_same(snapshot(model), snapshot(fresh))


def test_checkpoint_is_trainers_own(tmp_path):
    plain_files = None
    for method in ("none", "sam"):
        folder = tmp_path / method
        trained(bert(), sentences(32), folder, sam_method=method, save_strategy="steps", save_steps=3, **DROPOUT_RUN)
        checkpoint = folder / "checkpoint-3"
        files = {path.name for path in checkpoint.iterdir()}
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert {name for state in optimizer["state"].values() for name in state} == {"step", "exp_avg", "exp_avg_sq"}
        plain_files = plain_files or files
        assert files - {"sam_state.json"} == plain_files


@pytest.mark.parametrize("options", [{}, {"sam_m": 2}, {"sam_stochastic_rounding": True}], ids=str)
def test_resume_equals_the_uninterrupted_run(tmp_path, options):
    def make(folder):
        model = bert(dropout=0.2, dtype=torch.bfloat16 if "sam_stochastic_rounding" in options else torch.float32)
        settings = {"save_strategy": "steps", "save_steps": 3, "sam_rho": 0.1, "max_steps": 6}
        # The order of a shuffled epoch has to come back too
        settings["train_sampling_strategy"] = "random"
        return model, trainer_of(model, sentences(22), folder, **settings, **DROPOUT_RUN, **options)

    whole, trainer = make(tmp_path / "whole")
    trainer.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    resumed, again = make(tmp_path / "resumed")
    again.train(resume_from_checkpoint=True)
    assert_same(snapshot(resumed), snapshot(whole))
    keys = ("loss", "sam_perturbed_loss", "sam_ascent_grad_norm")
    assert [[e.get(k) for k in keys] for e in again.state.log_history[:-1]] == [
        [e.get(k) for k in keys] for e in trainer.state.log_history[:-1]
    ]


@pytest.mark.parametrize(("first", "second"), [("none", "sam"), ("sam", "none")])
def test_checkpoints_of_plain_training_resume_under_sam_and_back(tmp_path, first, second):
    options = {"save_strategy": "steps", "save_steps": 3, **DROPOUT_RUN}
    trained(bert(), sentences(32), tmp_path, sam_method=first, max_steps=3, **options)
    model = bert()
    trainer = trainer_of(model, sentences(32), tmp_path, sam_method=second, max_steps=6, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert flat(model).isfinite().all()


def test_evaluation_inside_training_sees_w(tmp_path):
    """The loss that evaluation reports in mid-run is that of the saved weights."""
    model = perceptron()
    trainer = trainer_of(
        model, points(32), tmp_path, eval_dataset=points(8), sam_rho=0.5, eval_strategy="steps", eval_steps=6
    )
    trainer.train()
    inside = next(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert trainer.evaluate()["eval_loss"] == inside

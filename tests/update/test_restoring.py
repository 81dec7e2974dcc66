"""The weights are w again, bit for bit, whenever anyone but a pass looks: after updates, exceptions and resumes."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    Watch,
    assert_same,
    flat,
    perceptron,
    points,
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


def test_evaluation_inside_training_sees_w(tmp_path):
    """The loss that evaluation reports in mid-run is that of the saved weights."""
    model = perceptron()
    trainer = trainer_of(
        model, points(32), tmp_path, eval_dataset=points(8), sam_rho=0.5, eval_strategy="steps", eval_steps=6
    )
    trainer.train()
    inside = next(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert trainer.evaluate()["eval_loss"] == inside

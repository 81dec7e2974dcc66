"""The user's own loops and schedules around SAMTrainer: only `training_step`, or layers that thaw during the run."""

from __future__ import annotations

import pytest
import torch
from by_hand import collated, train_by_hand, training_logs
from tiny import flat, perceptron, points, relative_difference, trainer_of, windows_of
from transformers import Trainer, TrainerCallback

from sam_hf import SAMTrainer

RHO, BATCH, UPDATES = 0.2, 4, 6


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_training_step_under_an_optimizer_that_the_trainer_does_not_know(tmp_path):
    """`training_step` fills the gradients, and the loop clips and steps, as with `Trainer.training_step`."""
    data = points(40)

    def run(trainer_class):
        model = perceptron()
        trainer = trainer_of(model, data, tmp_path, trainer_class=trainer_class, sam_rho=RHO)
        trainer.current_gradient_accumulation_steps = 1  # Trainer's own loop would set it
        optimizer, losses = sgd(model), []
        for (examples,) in windows_of(data, BATCH, 1, UPDATES):
            losses.append(float(trainer.training_step(model, collated(examples))))
            optimizer.step()
            optimizer.zero_grad()
        return model, losses

    plain, expected = perceptron(), perceptron()
    model, losses = run(SAMTrainer)
    history = train_by_hand(expected, windows_of(data, BATCH, 1, UPDATES), sgd(expected), rho=RHO)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    assert losses == pytest.approx([update.loss for update in history], rel=1e-9)
    history = train_by_hand(plain, windows_of(data, BATCH, 1, UPDATES), sgd(plain), rho=0.0)
    model, losses = run(Trainer)
    assert relative_difference(flat(model), flat(plain)) < 1e-9
    assert losses == pytest.approx([update.loss for update in history], rel=1e-9)


class OwnStep(SAMTrainer):
    """Passes every `every`-th micro-batch on to the parent class, and makes the passes of the others itself."""

    every = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.count = getattr(self, "count", 0) + 1
        if self.every and self.count % self.every == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = self.compute_loss(model, inputs) / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.parametrize(("every", "warned"), [(0, True), (2, True), (1, False)])
def test_a_training_step_that_leaves_sam_out_is_reported(tmp_path, monkeypatch, caplog, every, warned):
    monkeypatch.setattr(OwnStep, "every", every)
    model = perceptron()
    trainer = trainer_of(
        model, points(40), tmp_path, trainer_class=OwnStep, sam_rho=RHO, gradient_accumulation_steps=2
    )
    trainer.train()
    message = (
        "An update was made without SAM, because OwnStep.training_step did not pass every micro-batch on to "
        "super().training_step."
    )
    assert [record.getMessage() for record in caplog.records if record.name == "sam_hf.trainer.run_warnings"] == [
        message
    ] * warned


class Changing(SAMTrainer):
    """Changes its inputs, in place or in new tensors."""

    in_place = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.in_place:
            inputs["x"] *= 2
            inputs["labels"] += 1
            inputs["labels"] %= 3
        else:
            inputs = {"x": 2 * inputs["x"], "labels": (inputs["labels"] + 1) % 3}
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 2}, {"sam_m": 4}, {"sam_m": 2}], ids=str)
def test_inputs_changed_in_place_are_changed_once_in_every_pass(tmp_path, monkeypatch, options):
    weights = []
    for in_place in (True, False):
        monkeypatch.setattr(Changing, "in_place", in_place)
        model = perceptron()
        run = {"sam_rho": RHO, "gradient_accumulation_steps": 2} | options
        trainer_of(model, points(48), tmp_path, trainer_class=Changing, **run).train()
        weights.append(flat(model))
    assert torch.equal(*weights)


class Thaw(TrainerCallback):
    """Trains the first layer only from the fourth update on."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.first.requires_grad_(False)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            model.first.requires_grad_(True)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_layers_that_thaw_during_the_run(tmp_path, accumulation):
    data, model, expected = points(40), perceptron(), perceptron()
    trainer = trainer_of(
        model,
        data,
        tmp_path,
        callbacks=[Thaw()],
        sam_rho=RHO,
        gradient_accumulation_steps=accumulation,
        optim_args="momentum=0.9",
    )
    trainer.train()
    optimizer = sgd(expected)
    windows = windows_of(data, BATCH, accumulation, UPDATES)
    expected.first.requires_grad_(False)
    history = train_by_hand(expected, windows[:3], optimizer, rho=RHO)
    expected.first.requires_grad_(True)
    history += train_by_hand(expected, windows[3:], optimizer, rho=RHO)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    norms = [entry["sam_ascent_grad_norm"] for entry in training_logs(trainer)]
    assert norms == pytest.approx([update.ascent_norm for update in history], rel=1e-9)

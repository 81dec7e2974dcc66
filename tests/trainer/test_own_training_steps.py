"""Trainers with a `training_step` of their own, above and below the mixin, whose batches are cut into slices."""

from __future__ import annotations

import pytest
import torch
from tiny import bert, flat, perceptron, points, relative_difference, sentences, trained
from torch.nn.functional import cross_entropy
from transformers import Trainer

from sam_hf import SAMMixin, SAMTrainer

CUTS = [{}, {"sam_m": 4}, {"sam_m": 2}, {"sam_m": 1}]


class OwnStep(Trainer):
    """As in transformers 4.x: it divides by the accumulation steps itself, and passes no number of items on."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        loss = loss / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class Undivided(OwnStep):
    """It never divides, and unpacks what `compute_loss` returns."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        assert outputs["logits"].requires_grad or not torch.is_grad_enabled()
        self.accelerator.backward(loss)
        return loss.detach()


class TwoLosses(OwnStep):
    """A descent on one half of the features and an ascent on the other, as in unlearning."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        flipped = dict(inputs, x=inputs["x"].flip(-1))
        loss = self.compute_loss(model, inputs) - 0.3 * self.compute_loss(model, flipped)
        self.accelerator.backward(loss)
        return loss.detach()


class OwnLoss(Trainer):
    """`compute_loss` does not call that of the class above."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


class OwnLossAndStep(OwnLoss, OwnStep):
    pass


def above(base):
    """The same overrides in a subclass of `SAMTrainer`."""
    members = {"compute_loss": OwnLoss.compute_loss}
    return type("Above", (type("SAMBase", (SAMMixin, base), {}),), members)


def below(base):
    return type(f"SAM{base.__name__}", (SAMMixin, base), {})


BELOW = [OwnStep, Undivided, TwoLosses, OwnLoss, OwnLossAndStep]
CASES = {base.__name__: (below(base), base) for base in BELOW}
CASES |= {"loss above": (above(Trainer), OwnLoss), "loss above a step": (above(OwnStep), OwnLossAndStep)}


def run(trainer_class, output_dir, data=None, model=None, **options):
    model = perceptron() if model is None else model
    trainer = trained(model, data or points(16), output_dir, trainer_class=trainer_class, **{"max_steps": 3} | options)
    return flat(model), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("options", CUTS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_vanishing_radius_is_plain_training(tmp_path, name, options, accumulation):
    with_sam, plain = CASES[name]
    weights, losses = run(with_sam, tmp_path, sam_rho=1e-13, gradient_accumulation_steps=accumulation, **options)
    expected, plain_losses = run(plain, tmp_path, gradient_accumulation_steps=accumulation)
    assert relative_difference(weights, expected) < 1e-11
    assert losses == pytest.approx(plain_losses, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_the_ascent_examples_has_the_scale_of_all(tmp_path, name):
    """In every micro-batch, each example is there twice: half of them have the loss of all."""
    with_sam, plain = CASES[name]
    data = [example for i, example in enumerate(points(16)) if i % 4 < 2 for _ in range(1)]
    data = [data[place + offset] for place in range(0, len(data), 2) for offset in (0, 1, 0, 1)]
    weights, losses = run(with_sam, tmp_path, data, sam_rho=1e-13, sam_ascent_fraction=0.5)
    expected, plain_losses = run(plain, tmp_path, data)
    assert relative_difference(weights, expected) < 1e-11
    assert losses == pytest.approx(plain_losses, rel=1e-6)


@pytest.mark.parametrize("options", [{"sam_m": 2}, {"sam_ascent_fraction": 0.5}], ids=str)
def test_a_step_that_passes_no_number_of_items_on_has_a_mean(tmp_path, options):
    """The model would normalise by it. Labels that do not count make the difference between the two visible."""
    data = [e | {"labels": torch.tensor(-100)} if i in (0, 5) else e for i, e in enumerate(sentences(16))]
    run_options = {"data": data, "gradient_accumulation_steps": 2}
    weights, losses = run(CASES["OwnStep"][0], tmp_path, model=bert(), sam_rho=1e-13, **options, **run_options)
    expected, plain_losses = run(OwnStep, tmp_path, model=bert(), **run_options)
    assert relative_difference(weights, expected) < 1e-11
    if "sam_m" in options:
        assert losses == pytest.approx(plain_losses, rel=1e-6)


class Penalty(OwnStep):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs)) + 0.1 * model.first.weight.square().sum()
        self.accelerator.backward(loss)
        return loss.detach()


class WithoutComputeLoss(OwnStep):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs))["loss"]
        self.accelerator.backward(loss)
        return loss.detach()


class WithoutAccelerator(OwnStep):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        loss.backward()
        return loss.detach()


@pytest.mark.parametrize("options", [{"sam_m": 2}, {"sam_ascent_fraction": 0.5}], ids=str)
@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Penalty, "losses of slices do not add up .* a term that training_step adds"),
        (WithoutComputeLoss, "losses of slices do not add up"),
        (WithoutAccelerator, r"need a training_step that calls self\.accelerator\.backward\(loss\)"),
    ],
)
def test_steps_whose_slices_would_not_add_up_are_refused(tmp_path, base, message, options):
    model = perceptron()
    before = flat(model)
    with pytest.raises(ValueError, match=message) as error:
        run(below(base), tmp_path, model=model, **options)
    assert "\n" not in str(error.value)
    assert torch.equal(flat(model), before)
    # Whole micro-batches need no weight
    weights, _ = run(below(base), tmp_path, sam_rho=1e-13, gradient_accumulation_steps=2)
    expected, _ = run(base, tmp_path, gradient_accumulation_steps=2)
    assert relative_difference(weights, expected) < 1e-11


def test_what_the_user_set_on_the_trainer_is_put_back(tmp_path):
    """A function on the instance is called as such, and stays."""

    def own(model, inputs, return_outputs=False, num_items_in_batch=None):
        calls.append(len(inputs["labels"]))
        return model(**inputs)["loss"]

    class Assigned(SAMTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.compute_loss = own

    calls = []
    model, expected = perceptron(), perceptron()
    trainer = trained(model, points(16), tmp_path, trainer_class=Assigned, sam_m=2, sam_rho=0.2)
    trained(expected, points(16), tmp_path, sam_m=2, sam_rho=0.2)
    assert trainer.compute_loss is own and "backward" not in vars(trainer.accelerator)
    assert torch.equal(flat(model), flat(expected))
    assert set(calls) == {2, 4}

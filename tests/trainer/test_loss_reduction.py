"""Whether the loss is a mean or a sum: found by computing it twice, and refused if it is neither."""

from __future__ import annotations

import pytest
import torch
from causal import llama
from tiny import bert, flat, perceptron, points, relative_difference, sentences, summed_cross_entropy, trained
from torch.nn.functional import cross_entropy
from transformers import Trainer

from sam_hf.trainer.loss_weights import MEAN, NEITHER, SUM, loss_reduction

LENGTHS = (3, 24)


def noisy(loss_func, size=1e-6):
    """A loss whose kernel is not deterministic: two passes over the same examples differ in their last digits."""
    generator = torch.Generator().manual_seed(5)

    def compute_loss(outputs, labels, num_items_in_batch=None):
        loss = loss_func(outputs, labels, num_items_in_batch)
        return loss * (1 + size * torch.rand((), generator=generator, dtype=torch.float64))

    return compute_loss


def mean_cross_entropy(outputs, labels, num_items_in_batch=None):
    """A mean over the micro-batch, divided by the two micro-batches of the update."""
    return cross_entropy(outputs["logits"], labels) / 2


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda n: 3.0 + 1e-6 * torch.rand(()), MEAN),
        (lambda n: 3.0 / n * (1 + 1e-6 * torch.rand(())), SUM),
        (lambda n: 3.0 / n + 1.0, NEITHER),
        (lambda n: 3.0 * n, NEITHER),
        (lambda n: 0.0 / n, None),
        (lambda n: float("nan"), None),
    ],
)
def test_each_case_is_told_by_what_it_predicts(loss, expected):
    assert loss_reduction(lambda n: torch.as_tensor(loss(n)), 7, 1e-4) == expected


def test_without_a_number_of_items_it_is_a_mean():
    assert loss_reduction(lambda n: pytest.fail("no pass is needed"), None, 1e-4) == MEAN


@pytest.mark.parametrize("loss_func", [mean_cross_entropy, summed_cross_entropy])
def test_a_kernel_that_is_not_deterministic_changes_no_weight_of_a_slice(tmp_path, loss_func):
    data = [e | {"labels": torch.tensor(-100)} if i in (1, 6) else e for i, e in enumerate(points(16))]
    options = {"max_steps": 2, "gradient_accumulation_steps": 2, "compute_loss_func": noisy(loss_func)}
    model, plain = perceptron(), perceptron()
    trained(model, data, tmp_path, sam_rho=1e-13, sam_m=2, **options)
    trained(plain, data, tmp_path, trainer_class=Trainer, **options)
    assert relative_difference(flat(model), flat(plain)) < 1e-5


@pytest.mark.parametrize("options", [{"sam_m": 2}, {"sam_ascent_fraction": 0.5}], ids=str)
def test_a_loss_that_is_neither_is_refused(tmp_path, options):
    def with_penalty(outputs, labels, num_items_in_batch=None):
        return summed_cross_entropy(outputs, labels, num_items_in_batch) + outputs["logits"].square().mean()

    model = perceptron()
    before = flat(model)
    with pytest.raises(ValueError, match=r"mean over the micro-batch, or a sum .* The loss of SAMTrainer is neither"):
        trained(model, points(16), tmp_path, compute_loss_func=with_penalty, **options)
    assert torch.equal(flat(model), before)
    trained(perceptron(), points(16), tmp_path, compute_loss_func=with_penalty, max_steps=1)  # whole batches


def test_a_slice_without_a_label_adds_nothing_to_a_mean(tmp_path):
    data = [e | {"labels": torch.tensor(-100)} if i in (0, 5) else e for i, e in enumerate(sentences(16))]
    model, plain = bert(), bert()
    sam = trained(model, data, tmp_path, sam_rho=1e-13, sam_m=1, max_steps=3)
    trainer = trained(plain, data, tmp_path, trainer_class=Trainer, max_steps=3)
    assert relative_difference(flat(model), flat(plain)) < 1e-11
    logged, expected = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (sam, trainer))
    assert logged == pytest.approx(expected, rel=1e-9)


def documents(size):
    """Token sequences of two lengths, padded: their first tokens are no targets of a causal language model."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(size):
        length = LENGTHS[i % 2]
        ids = torch.randint(3, 17, (max(LENGTHS),), generator=generator)
        mask = torch.arange(max(LENGTHS)) < length
        rows.append({"input_ids": ids * mask, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)})
    return rows


@pytest.mark.parametrize("accepts_loss_kwargs", [True, False], ids=["sum", "mean"])
def test_slices_of_a_causal_language_model(tmp_path, accepts_loss_kwargs):
    options = {"max_steps": 2, "gradient_accumulation_steps": 2}
    weights = []
    for more in ({"sam_rho": 1e-13, "sam_m": 1}, {"trainer_class": Trainer}):
        model = llama()
        model.accepts_loss_kwargs = accepts_loss_kwargs
        trained(model, documents(16), tmp_path, **options, **more)
        weights.append(flat(model))
    assert relative_difference(*weights) < 1e-10


@pytest.mark.parametrize("accepts_loss_kwargs", [True, False], ids=["sum", "mean"])
def test_ascent_examples_of_a_causal_language_model(tmp_path, accepts_loss_kwargs):
    """The logged loss is that of the examples with an ascent pass: here the first, short one of two."""
    model, data = llama(), documents(2)
    model.accepts_loss_kwargs = accepts_loss_kwargs
    with torch.no_grad():
        expected = float(model(**{key: value[None] for key, value in data[0].items()}).loss)
    run = {"per_device_train_batch_size": 2, "max_steps": 1, "sam_rho": 0.01, "sam_ascent_fraction": 0.5}
    trainer = trained(model, data, tmp_path, **run)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-9)

"""Micro-batches cut into slices (`sam_m` below the batch size): they add up to what Trainer itself computes."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    bert,
    flat,
    perceptron,
    points,
    relative_difference,
    sentences,
    summed_cross_entropy,
    trained,
    trainer_of,
)
from transformers import Trainer

# 15 examples: the last micro-batch, of 3, is not cut evenly by slices of 2
SIZE = 15


def difference(output_dir, make_model, make_data, m, **options):
    """Of the weights, between plain training and SAM with slices of `m` examples at a vanishing radius."""
    options = {"max_steps": 3, "gradient_accumulation_steps": 2} | options
    model, plain = make_model(), make_model()
    sam = trained(model, make_data(), output_dir, sam_rho=1e-13, sam_m=m, **options)
    trainer = trained(plain, make_data(), output_dir, trainer_class=Trainer, **options)
    losses, expected = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (sam, trainer))
    # Label smoothing sums in float32
    assert losses == pytest.approx(expected, rel=1e-6)
    return relative_difference(flat(model), flat(plain))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_real_valued_labels(tmp_path, problem_type, m):
    def data():
        labels = torch.rand(SIZE, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return [example | {"labels": y} for example, y in zip(sentences(SIZE), labels, strict=True)]

    assert difference(tmp_path, lambda: bert(problem_type=problem_type), data, m) < 1e-11


@pytest.mark.parametrize("m", [1, 2])
def test_label_smoothing(tmp_path, m):
    assert difference(tmp_path, bert, lambda: sentences(SIZE), m, label_smoothing_factor=0.1) < 1e-11


# The first slice, a later slice, two slices of one micro-batch, a whole micro-batch (the first, by which it is found
# out how the loss is normalised)
@pytest.mark.parametrize("ignored", [[0], [1], [5, 6], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("m", [1, 2])
def test_examples_without_labels_with_a_sum(tmp_path, m, ignored):
    def data():
        return [e | {"labels": torch.tensor(-100)} if i in ignored else e for i, e in enumerate(points(16))]

    assert difference(tmp_path, perceptron, data, m, compute_loss_func=summed_cross_entropy) < 1e-11


@pytest.mark.parametrize("ignored", [[0], [5, 6]], ids=str)
def test_examples_without_labels_with_a_mean(tmp_path, ignored):
    def data():
        return [e | {"labels": torch.tensor(-100)} if i in ignored else e for i, e in enumerate(sentences(16))]

    assert difference(tmp_path, bert, data, 2) < 1e-11


def test_inputs_that_cannot_be_cut_are_refused(tmp_path):
    def packed(examples):
        batch = {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
        return batch | {"input_ids": batch["input_ids"].view(1, -1)}

    trainer = trainer_of(bert(), sentences(8), tmp_path, sam_m=1)
    trainer.data_collator = packed
    with pytest.raises(ValueError, match=r"sam_m cannot cut this batch.*'attention_mask'"):
        trainer.train()

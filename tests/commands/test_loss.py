"""Tests of the programs' loss against the losses of transformers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.trainer_pt_utils import LabelSmoother

from sam_hf.recipes.loss import loss_function


@pytest.fixture
def logits():
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_is_that_of_transformers(logits, smoothing):
    expected = LabelSmoother(epsilon=smoothing)({"logits": logits}, LABELS)
    loss = loss_function("single_label_classification", smoothing)({"logits": logits}, LABELS)
    torch.testing.assert_close(loss, expected)


def test_without_a_number_it_is_the_mean(logits):
    loss = loss_function("single_label_classification")({"logits": logits}, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(logits, LABELS))


def test_multi_label(logits):
    labels = torch.tensor([[0.0, 1, 1], [1, 0, 0]] * 3)
    loss = loss_function("multi_label_classification")({"logits": logits}, labels)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, labels.double()))


def test_regression_takes_a_column_of_outputs_for_a_row_of_labels(logits):
    labels = torch.arange(6.0)
    loss = loss_function("regression")({"logits": logits[:, :1]}, labels)
    torch.testing.assert_close(loss, F.mse_loss(logits[:, 0], labels.double()))


@pytest.mark.parametrize(
    "problem_type, labels",
    [
        ("single_label_classification", LABELS),
        ("multi_label_classification", torch.ones(6, 3)),
        ("regression", torch.ones(6)),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_parts_add_up_to_the_whole(logits, problem_type, labels, as_tensor):
    compute = loss_function(problem_type)
    outputs = logits[:, :1] if problem_type == "regression" else logits
    count = torch.tensor(labels.numel()) if as_tensor else labels.numel()
    # Micro-batches of 4 and 2, as tuples, which models return without return_dict
    parts = [compute((outputs[rows],), labels[rows], num_items_in_batch=count) for rows in (slice(4), slice(4, 6))]
    torch.testing.assert_close(sum(parts), compute({"logits": outputs}, labels))

"""Accumulation is exact: the same update however the window is cut into micro-batches."""

from __future__ import annotations

import pytest
from reference import mean_of_means, sam_gradient, split_into_groups
from tiny import (
    bert,
    flat,
    loss_of,
    perceptron,
    points,
    relative_difference,
    sentences,
    summed_cross_entropy,
    trained,
)
from torch.utils.data import IterableDataset
from transformers import Trainer

ROUNDING = 1e-12


def weights_after(output_dir, make_model, data, batch_size, accumulation, **options):
    model = make_model()
    trained(
        model,
        data,
        output_dir,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    return flat(model)


@pytest.mark.parametrize("method", ["none", "sam"])
def test_eight_micro_batches_of_four_equal_one_of_thirty_two(tmp_path, method):
    options = {"sam_method": method, "sam_rho": 0.2}
    whole = weights_after(tmp_path, perceptron, points(96), 32, 1, **options)
    cut = weights_after(tmp_path, perceptron, points(96), 4, 8, **options)
    assert relative_difference(cut, whole) < ROUNDING


@pytest.mark.parametrize("sam_options", [{}, {"sam_p": 3.0, "sam_ascent_steps": 3}])
def test_loss_normalised_by_num_items(tmp_path, sam_options):
    options = {"sam_rho": 0.2, "compute_loss_func": summed_cross_entropy, **sam_options}
    whole = weights_after(tmp_path, bert, sentences(64), 32, 1, **options)
    cut = weights_after(tmp_path, bert, sentences(64), 4, 8, **options)
    assert relative_difference(cut, whole) < ROUNDING


def test_last_window_short_by_whole_micro_batches(tmp_path):
    # An epoch of 32 + 12 examples: the second window has 3 of its 8 micro-batches
    whole = weights_after(tmp_path, perceptron, points(44), 32, 1, sam_rho=0.2)
    cut = weights_after(tmp_path, perceptron, points(44), 4, 8, sam_rho=0.2)
    assert relative_difference(cut, whole) < ROUNDING


def test_ragged_last_micro_batch(tmp_path):
    options = {"sam_rho": 0.2, "compute_loss_func": summed_cross_entropy}
    whole = weights_after(tmp_path, perceptron, points(42), 32, 1, **options)
    cut = weights_after(tmp_path, perceptron, points(42), 4, 8, **options)
    assert relative_difference(cut, whole) < ROUNDING


def test_group_of_several_micro_batches_equals_micro_batches_of_that_size(tmp_path):
    together = weights_after(tmp_path, perceptron, points(64), 4, 8, sam_rho=0.2, sam_m=8)
    in_one = weights_after(tmp_path, perceptron, points(64), 8, 4, sam_rho=0.2, sam_m=8)
    sliced = weights_after(tmp_path, perceptron, points(64), 32, 1, sam_rho=0.2, sam_m=8)
    assert relative_difference(together, in_one) < ROUNDING
    assert relative_difference(sliced, in_one) < ROUNDING


def test_one_perturbation_per_micro_batch_is_another_update(tmp_path):
    window = weights_after(tmp_path, perceptron, points(64), 4, 8, sam_rho=0.2)
    micro_batch = weights_after(tmp_path, perceptron, points(64), 4, 8, sam_rho=0.2, sam_m=4)
    assert relative_difference(micro_batch, window) > 1e-6


class Stream(IterableDataset):
    """Without a length, so that Trainer does not know which micro-batch is an epoch's last."""

    def __init__(self, size: int):
        self.data = points(size)

    def __iter__(self):
        yield from self.data


@pytest.mark.parametrize("method", ["none", "sam"])
def test_stream_that_breaks_off_in_mid_window(tmp_path, method):
    options = {"gradient_accumulation_steps": 2, "max_steps": 5, "sam_method": method}
    model, plain = perceptron(), perceptron()
    trained(model, Stream(10), tmp_path, sam_rho=1e-13, **options)
    trained(plain, Stream(10), tmp_path, trainer_class=Trainer, **options)
    assert relative_difference(flat(model), flat(plain)) < 1e-11


def test_gradient_of_a_window_that_broke_off_goes_into_the_next_update(tmp_path):
    """Trainer steps after 4+4 examples, not after the last 4, and adds those to the next epoch's first update."""
    model, rho, lr = perceptron(), 0.2, 0.05
    w, loss, data = flat(model), loss_of(model), points(12)
    full, broken_off = mean_of_means([data[:4], data[4:8]]), mean_of_means([data[8:]])
    w = w - lr * sam_gradient(loss, w, split_into_groups(full, None, 4), rho).gradient
    groups = split_into_groups(full, None, 4) + split_into_groups(broken_off, None, 4)
    w = w - lr * sam_gradient(loss, w, groups, rho).gradient
    trained(model, Stream(12), tmp_path, gradient_accumulation_steps=2, max_steps=2, sam_rho=rho, learning_rate=lr)
    assert relative_difference(flat(model), w) < ROUNDING

"""The computation of an update, counted in multiplications: methods that save passes really save them."""

from __future__ import annotations

import pytest
import torch
from reference_methods import DEFAULTS
from tiny import bert, sentences, trainer_of
from torch.utils.flop_counter import FlopCounterMode

from sam_hf.methods import METHODS

PERTURBING = [method for method in METHODS if method in DEFAULTS]


def multiplications(output_dir, updates: int = 1, **options) -> int:
    # Wide layers, short texts: nearly all work is in linear layers, whose backward pass costs twice the forward pass
    model = bert(dtype=torch.float32, hidden_size=32, intermediate_size=128, num_hidden_layers=2)
    run = {"max_steps": updates, "optim_args": "momentum=0.9", "per_device_train_batch_size": 8}
    trainer = trainer_of(model, sentences(32), output_dir, **(run | options))
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return multiplications(tmp_path_factory.mktemp("plain"), sam_method="none")


@pytest.mark.parametrize("method", [method for method in PERTURBING if method not in ("msam", "looksam")])
def test_two_passes(tmp_path, plain, method):
    assert multiplications(tmp_path, sam_method=method) == 2 * plain


def test_momentum_sam_is_one_pass(tmp_path, plain):
    assert multiplications(tmp_path, updates=3, sam_method="msam") == 3 * plain


def test_looksam_is_six_passes_in_five_updates(tmp_path, plain):
    assert multiplications(tmp_path, updates=5, sam_method="looksam") == 6 * plain
    assert multiplications(tmp_path, updates=4, sam_method="looksam", sam_interval=2) == 6 * plain


@pytest.mark.parametrize("method", PERTURBING)
def test_updates_between_those_of_an_interval_are_plain(tmp_path, plain, method):
    passes = 10 if method == "msam" else 11
    assert multiplications(tmp_path, updates=10, sam_method=method, sam_interval=10) == passes * plain


def test_updates_before_the_start_are_plain(tmp_path, plain):
    assert multiplications(tmp_path, updates=4, sam_start_ratio=0.75) == 5 * plain


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_ascent_on_a_fraction(tmp_path, plain, fraction, accumulation):
    """The ascent costs exactly its share, for parts of a micro-batch and for whole ones, once the loss is known."""
    options = {
        "sam_ascent_fraction": fraction,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 8 // accumulation,
    }
    tenth, twelfth = (multiplications(tmp_path, updates=updates, **options) for updates in (10, 12))
    assert twelfth - tenth == 2 * (1 + fraction) * plain
    # Once per run, three forward passes over a micro-batch find out what kind of mean or sum the loss is. The first
    # ten micro-batches are compared with their slices, in two forward passes
    assert tenth - 10 * (1 + fraction) * plain <= (3 + 10 * 2) / 3 * plain / accumulation


@pytest.mark.parametrize("accumulation", [1, 4])
def test_weight_gradients_of_what_is_not_perturbed_are_not_computed(tmp_path, plain, accumulation):
    """This saves a third of the ascent pass. The forward pass and the gradients of activations remain."""
    options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    norm = multiplications(tmp_path, sam_target_modules="norm", **options)
    assert norm / plain == pytest.approx(5 / 3, abs=0.02)
    # The classifier is the last layer: nothing below it needs a gradient of activations
    last = multiplications(tmp_path, sam_target_modules=["classifier"], **options)
    assert last / plain == pytest.approx(4 / 3, abs=0.02)


@pytest.mark.parametrize("method", [method for method in PERTURBING if method not in ("msam", "looksam")])
def test_weight_gradients_are_skipped_by_every_method(tmp_path, plain, method):
    norm = multiplications(tmp_path, sam_method=method, sam_target_modules="norm")
    assert norm / plain == pytest.approx(5 / 3, abs=0.02)


def test_every_ascent_step_skips_them(tmp_path, plain):
    norm = multiplications(tmp_path, sam_target_modules="norm", sam_ascent_steps=3)
    assert norm / plain == pytest.approx(1 + 3 * 2 / 3, abs=0.04)


def test_total_flos_counts_the_passes(tmp_path):
    """Trainer's own estimate is multiplied by the passes and the examples of each pass."""

    def reported(**options):
        options = {"max_steps": 4, "per_device_train_batch_size": 8, "optim_args": "momentum=0.9"} | options
        trainer = trainer_of(bert(), sentences(32), tmp_path, **options)
        trainer.train()
        return trainer.state.total_flos

    plain = reported(sam_method="none")
    assert reported(sam_method="msam") == plain
    assert reported(sam_interval=2) == 1.5 * plain
    assert reported(sam_ascent_fraction=0.25) == 1.25 * plain
    halves = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    assert reported(sam_ascent_fraction=0.25, **halves) == 1.25 * plain

"""Without a perturbation SAMTrainer is Trainer: bit for bit, with dropout on and gradients accumulated."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny import assert_same, bert, flat, relative_difference, sentences, snapshot, trained
from transformers import Trainer

from sam_hf.update.random_state import RandomState

OPTIONS = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
}


def run(output_dir, plain=False, dropout=0.2, dtype=torch.float64, **changes):
    model = bert(dropout=dropout, dtype=dtype)
    options = OPTIONS | ({"trainer_class": Trainer} if plain else {}) | changes
    # 22 examples: the epoch's last window is short and ragged
    trainer = trained(model, sentences(22), output_dir, **options)
    return model, trainer, RandomState()


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("changes", [{"sam_method": "none"}, {"sam_rho": 0.0}, {"sam_rho": 0.0, "sam_m": 1}])
def test_bit_for_bit(tmp_path, changes, dtype):
    expected, plain, plain_random = run(tmp_path, plain=True, dtype=dtype)
    model, trainer, random_state = run(tmp_path, dtype=dtype, **changes)
    assert_same(snapshot(model), snapshot(expected))
    for key in ("loss", "grad_norm", "learning_rate", "train_loss", "total_flos"):
        assert history(trainer, key) == history(plain, key)
    assert random_state == plain_random


@pytest.mark.parametrize(
    "changes",
    [{}, {"sam_ascent_steps": 3}, {"sam_p": float("inf")}, {"sam_m": 4}, {"sam_m": 8}],
    ids=str,
)
def test_vanishing_radius_follows_trainer_with_dropout(tmp_path, changes):
    expected, plain, plain_random = run(tmp_path, plain=True)
    model, trainer, random_state = run(tmp_path, sam_rho=1e-12, **changes)
    assert relative_difference(flat(model), flat(expected)) < 1e-8
    assert history(trainer, "loss") == pytest.approx(history(plain, "loss"), rel=1e-8)
    assert random_state == plain_random


def test_logged_loss_is_that_of_the_unperturbed_weights(tmp_path):
    _, plain, _ = run(tmp_path, plain=True, max_steps=1)
    _, trainer, _ = run(tmp_path, sam_rho=0.5, max_steps=1)
    assert history(trainer, "loss") == history(plain, "loss")
    assert history(trainer, "sam_perturbed_loss")[0] > history(trainer, "loss")[0]


@pytest.mark.parametrize("sam_m", [1, 2])
def test_slices_leave_the_generators_where_plain_training_does(tmp_path, sam_m):
    *_, plain_random = run(tmp_path, plain=True)
    *_, random_state = run(tmp_path, sam_rho=0.1, sam_m=sam_m)
    assert random_state == plain_random


def test_without_replay_the_passes_draw_other_numbers(tmp_path):
    expected, *_, plain_random = run(tmp_path, plain=True)
    model, _, random_state = run(tmp_path, sam_rho=1e-12, sam_replay_rng=False)
    assert relative_difference(flat(model), flat(expected)) > 1e-3
    assert random_state != plain_random


def test_replay_covers_python_and_numpy(tmp_path):
    """A model may draw from any of the three CPU generators; each pass sees the same numbers."""
    model = bert()
    drawn = []
    model.register_forward_pre_hook(
        lambda *_: drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    )
    trained(model, sentences(8), tmp_path, max_steps=2, sam_rho=0.1, sam_ascent_steps=2)
    assert len(drawn) == 6
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3] == drawn[4] == drawn[5]

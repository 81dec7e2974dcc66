"""SAMTrainer against the formulas written out in float64: weights after 6 updates agree to 1e-9."""

from __future__ import annotations

import math

import pytest
import reference
import torch
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
    windows_of,
)

BATCH, ACCUMULATION, UPDATES, RHO = 4, 4, 6, 0.2
# All of the update, a micro-batch, two micro-batches, a quarter of a micro-batch
GROUPS = [None, BATCH, 2 * BATCH, BATCH // 4]
OPTIMIZERS = {
    "sgd": {"optim": "sgd", "learning_rate": 0.05},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05},
    "adamw": {"optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1},
}
# How Trainer adds up the losses of micro-batches, and the settings that make it do so
LOSSES = {
    "mean of means": (perceptron, points, reference.mean_of_means, None),
    "num_items_in_batch": (perceptron, points, reference.equal_weights, summed_cross_entropy),
    "accepts and ignores num_items_in_batch": (bert, sentences, reference.sum_of_means, None),
}


def base_optimizer(name, model):
    if name == "adamw":
        # Trainer's rule: no decay of biases and normalisation weights
        decays = [
            torch.full((p.numel(),), 0.0 if "bias" in n or "LayerNorm" in n else 0.1)
            for n, p in model.named_parameters()
        ]
        return reference.AdamW(torch.cat(decays).double())
    return reference.SGD(momentum=0.9 if name == "momentum" else 0.0)


def difference(output_dir, optimizer="sgd", loss="mean of means", p=2.0, k=1, m=None, size=None, **changes):
    make_model, make_data, weigh, loss_func = LOSSES[loss]
    settings = OPTIMIZERS[optimizer]
    data = make_data(size or BATCH * ACCUMULATION * 2)
    model = make_model()
    start, example_loss = flat(model), loss_of(model)
    windows = [weigh(window) for window in windows_of(data, BATCH, ACCUMULATION, UPDATES)]
    rates = [settings["learning_rate"]] * UPDATES
    if changes.get("lr_scheduler_type") == "linear":
        rates = [rate * (1 - t / UPDATES) for t, rate in enumerate(rates)]
    expected, _ = reference.train(
        example_loss,
        start,
        windows,
        base_optimizer(optimizer, model),
        rates,
        BATCH,
        RHO,
        p=p,
        k=k,
        m=m,
        max_grad_norm=changes.get("max_grad_norm", 0.0),
    )
    trainer = trained(
        model,
        data,
        output_dir,
        compute_loss_func=loss_func,
        gradient_accumulation_steps=ACCUMULATION,
        per_device_train_batch_size=BATCH,
        sam_rho=RHO,
        sam_p=p,
        sam_ascent_steps=k,
        sam_m=m,
        **settings,
        **changes,
    )
    assert trainer.state.global_step == UPDATES
    assert relative_difference(flat(model), start) > 1e-3
    return relative_difference(flat(model), expected)


@pytest.mark.parametrize("m", GROUPS)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, math.inf])
def test_norms_ascent_steps_and_groups(tmp_path, p, k, m):
    assert difference(tmp_path, p=p, k=k, m=m) < 1e-9


@pytest.mark.parametrize("m", GROUPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(tmp_path, optimizer, m):
    assert difference(tmp_path, optimizer=optimizer, m=m) < 1e-9


@pytest.mark.parametrize(("p", "k"), [(1.5, 3), (3.0, 1), (math.inf, 3)])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_optimizers_with_other_norms(tmp_path, optimizer, p, k):
    assert difference(tmp_path, optimizer=optimizer, loss="num_items_in_batch", p=p, k=k) < 1e-9


@pytest.mark.parametrize("m", GROUPS)
@pytest.mark.parametrize("loss", list(LOSSES)[1:])
def test_how_the_loss_is_normalised(tmp_path, loss, m):
    assert difference(tmp_path, loss=loss, m=m) < 1e-9


@pytest.mark.parametrize("m", GROUPS)
def test_ragged_last_micro_batch(tmp_path, m):
    # Windows of 4+4+4+4 and 4+3 examples
    assert difference(tmp_path, loss="num_items_in_batch", m=m, size=23) < 1e-9


def test_clipping_and_schedule_apply_to_the_update_gradient(tmp_path):
    assert difference(tmp_path, optimizer="adamw", max_grad_norm=0.05, lr_scheduler_type="linear") < 1e-9


def test_the_reference_itself():
    """What equation 2 says of ε, so that a slip in the reference cannot pass for agreement."""
    g = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    assert torch.allclose(reference.dual_direction(g, 2.0), torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64))
    assert reference.dual_direction(g, math.inf).tolist() == [1.0, -1.0, 0.0]
    assert reference.dual_direction(torch.zeros(3, dtype=torch.float64), 3.0).tolist() == [0.0, 0.0, 0.0]
    for p in (1.5, 2.0, 3.0):
        epsilon = reference.dual_direction(g, p)
        q = p / (p - 1)
        assert float(epsilon.norm(p)) == pytest.approx(1.0, rel=1e-12)
        assert float(epsilon @ g) == pytest.approx(float(g.norm(q)), rel=1e-12)

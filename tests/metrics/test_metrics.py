"""What is logged beside Trainer's own: names, values against the float64 reference, and what it costs."""

from __future__ import annotations

import pytest
import reference
import torch
from tiny import bert, flat, loss_of, perceptron, points, sentences, trained, trainer_of, windows_of

BATCH, ACCUMULATION, UPDATES, RHO, RATE = 4, 2, 6, 0.2, 0.05
NAMES = {"sam_perturbed_loss", "sam_sharpness", "sam_ascent_grad_norm", "sam_rho", "sam_skipped"}


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def sam_names(entry):
    return {name for name in entry if name.startswith("sam_")}


def expected_metrics(data, k=1, m=None):
    """The reference's metrics of every update; the norm is the mean over the groups of an update."""
    model = perceptron()
    windows = [reference.mean_of_means(w) for w in windows_of(data, BATCH, ACCUMULATION, UPDATES)]
    _, history = reference.train(
        loss_of(model), flat(model), windows, reference.SGD(), [RATE] * UPDATES, BATCH, RHO, k=k, m=m
    )
    return [
        {
            "loss": update.loss,
            "sam_perturbed_loss": update.perturbed_loss,
            "sam_sharpness": update.perturbed_loss - update.loss,
            "sam_ascent_grad_norm": sum(float(g.norm()) for g in update.ascent_gradients)
            / len(update.ascent_gradients),
            "sam_rho": RHO,
            "sam_skipped": 0.0,
        }
        for update in history
    ]


def sam_run(output_dir, data, **options):
    return trained(
        perceptron(),
        data,
        output_dir,
        sam_rho=RHO,
        learning_rate=RATE,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        **options,
    )


@pytest.mark.parametrize(("k", "m"), [(1, None), (3, None), (1, BATCH), (1, BATCH // 2), (2, BATCH // 4)])
def test_values_of_every_update(tmp_path, k, m):
    data = points(32)
    entries = logged(sam_run(tmp_path, data, sam_ascent_steps=k, sam_m=m))
    expected = expected_metrics(data, k, m)
    assert len(entries) == len(expected) == UPDATES
    for entry, values in zip(entries, expected, strict=True):
        assert sam_names(entry) == NAMES
        # Trainer sums up its own loss in float32
        assert entry["loss"] == pytest.approx(values.pop("loss"), rel=1e-6)
        assert {name: entry[name] for name in values} == pytest.approx(values, rel=1e-9)


@pytest.mark.parametrize("steps", [2, 3])
def test_means_over_the_updates_since_the_last_log(tmp_path, steps):
    data = points(32)
    entries = logged(sam_run(tmp_path, data, logging_steps=steps))
    each = expected_metrics(data)
    assert len(entries) == UPDATES // steps
    for i, entry in enumerate(entries):
        part = each[i * steps : (i + 1) * steps]
        means = {name: sum(update[name] for update in part) / steps for name in NAMES}
        assert {name: entry[name] for name in NAMES} == pytest.approx(means, rel=1e-9)


@pytest.mark.parametrize("options", [{"sam_method": "none"}, {"sam_rho": 0.0}], ids=str)
def test_plain_training_logs_nothing_of_sam(tmp_path, options):
    trainer = trained(perceptron(), points(32), tmp_path, **options)
    assert logged(trainer)
    assert not any(sam_names(entry) for entry in trainer.state.log_history)


def test_evaluation_and_summary_carry_no_metrics_of_training(tmp_path):
    trainer = trained(perceptron(), points(32), tmp_path, eval_dataset=points(8), eval_strategy="steps", eval_steps=2)
    others = [entry for entry in trainer.state.log_history if "loss" not in entry]
    assert any("eval_loss" in entry for entry in others)
    assert not any(sam_names(entry) for entry in others)


def test_a_second_run_starts_its_means_anew(tmp_path):
    trainer = trainer_of(perceptron(), points(32), tmp_path, max_steps=3, logging_steps=2, sam_rho=RHO)
    trainer.train()  # leaves the third update in the means
    trainer.args.sam_rho = 2 * RHO
    trainer.train()
    assert [entry["sam_rho"] for entry in logged(trainer)] == [2 * RHO]


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"sam_method": "none"}, 1),
        ({"sam_rho": 0.0}, 1),
        ({}, 2),
        ({"sam_ascent_steps": 3}, 4),
        ({"sam_m": 4}, 2),
        ({"sam_m": 2}, 2),
    ],
    ids=str,
)
def test_total_flos_counts_every_pass(tmp_path, options, passes):
    run = {"max_steps": 2, "gradient_accumulation_steps": 2}
    trainer = trained(bert(), sentences(16), tmp_path, **run, **options)
    one_pass = trainer.floating_point_ops({"input_ids": torch.stack([s["input_ids"] for s in sentences(4)])})
    assert one_pass > 0
    assert trainer.state.total_flos == passes * 2 * 2 * one_pass

"""Learning rates follow plain Trainer's schedule at every update, for each `lr_scheduler_type`."""

from __future__ import annotations

import pytest
from by_hand import real_optimizer, train_by_hand, training_logs
from tiny import flat, perceptron, points, relative_difference, trainer_of, windows_of
from transformers import Trainer
from transformers.trainer_utils import SchedulerType

from sam_hf import SAMTrainer

UPDATES = 8
SPECIFIC = {
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0, "lr_end": 1e-4},
    "cosine_with_min_lr": {"min_lr": 0.01},
    "cosine_warmup_with_min_lr": {"min_lr": 0.01},
    "warmup_stable_decay": {"num_decay_steps": 3, "min_lr_ratio": 0.1},
}
ON_METRICS = {"reduce_lr_on_plateau": {"factor": 0.5, "patience": 0}, "greedy": {"factor": 0.5, "patience": 0}}
ON_UPDATES = sorted({kind.value for kind in SchedulerType} - set(ON_METRICS))


def run(trainer_class, data, output_dir, metrics=None, **options):
    model = perceptron()
    trainer = trainer_of(
        model, data, output_dir, trainer_class=trainer_class, max_steps=UPDATES, sam_rho=0.2, **options
    )
    if metrics is not None:
        values = iter(metrics)
        trainer.compute_metrics = lambda _: {"made_up": next(values)}
    trainer.train()
    return model, trainer


def rates(trainer) -> list[float]:
    return [entry["learning_rate"] for entry in training_logs(trainer)]


@pytest.mark.parametrize("kind", ON_UPDATES)
def test_schedules_that_count_updates(tmp_path, kind):
    options = {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": SPECIFIC.get(kind),
        "warmup_steps": 0 if kind == "constant" else 2,
        "gradient_accumulation_steps": 2,  # passes and micro-batches are not updates
    }
    data = points(40)
    _, plain = run(Trainer, data, tmp_path, **options)
    model, trainer = run(SAMTrainer, data, tmp_path, **options)
    assert rates(trainer) == rates(plain)
    assert len(rates(trainer)) == UPDATES
    assert (len(set(rates(trainer))) == 1) == (kind == "constant")
    # The rates are those of the updates, not only those in the log
    expected = perceptron()
    optimizer, scheduler = real_optimizer(expected, data, tmp_path, UPDATES, max_steps=UPDATES, **options)
    windows = windows_of(data, 4, 2, UPDATES)
    history = train_by_hand(expected, windows, optimizer, scheduler, rho=0.2)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    assert rates(trainer) == [update.learning_rate for update in history]


@pytest.mark.parametrize("kind", ON_METRICS)
def test_schedules_that_follow_the_evaluation(tmp_path, kind):
    options = {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": ON_METRICS[kind],
        "eval_dataset": points(8),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "made_up",
        "greater_is_better": False,
        "metrics": [1.0, 2.0, 0.5, 3.0],
    }
    _, plain = run(Trainer, points(32), tmp_path, **options)
    _, trainer = run(SAMTrainer, points(32), tmp_path, **options)
    assert rates(trainer) == rates(plain)
    # The second evaluation, after update 4, is worse
    assert rates(trainer)[4] < rates(trainer)[3]


def test_plateau_follows_the_loss_at_the_weights_themselves(tmp_path):
    """The metric is the evaluation loss of w: the rate falls after exactly the evaluations that are not better."""
    _, trainer = run(
        SAMTrainer,
        points(32),
        tmp_path,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"factor": 0.5, "patience": 0, "threshold": 0.0},
        learning_rate=1.0,
        eval_dataset=points(8),
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
    )
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    rate, best, expected = 1.0, float("inf"), []
    for loss in losses:
        expected.append(rate)
        rate, best = (rate, loss) if loss < best else (rate / 2, best)
    assert rates(trainer) == expected
    assert len(set(expected)) > 1

"""In `hyperparameter_search` over sam_* arguments, every trial trains with its own values."""

from __future__ import annotations

import pytest
from by_hand import training_logs
from tiny import arguments, flat, perceptron, points, relative_difference, trained

from sam_hf import SAMTrainer

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

RUN = {"max_steps": 4, "gradient_accumulation_steps": 2}


def search(output_dir, space, n_trials, sampler=None, **options):
    """Run a search. Return its best trial, the logs and the final weights of each trial, and the trainer."""
    trials = []

    class Kept(SAMTrainer):
        def train(self, *args, **kwargs):
            result = super().train(*args, **kwargs)
            trials.append((training_logs(self), flat(self.model)))
            return result

    trainer = Kept(
        model_init=lambda: perceptron(),
        args=arguments(output_dir, **(RUN | options)),
        train_dataset=points(40),
        eval_dataset=points(8),
    )
    best = trainer.hyperparameter_search(
        hp_space=space, n_trials=n_trials, direction="minimize", backend="optuna", sampler=sampler
    )
    return best, trials, trainer


# Trainer casts the value of a trial to the type of the field's value
@pytest.mark.parametrize("before", [None, 0], ids=str)
def test_every_trial_has_its_own_rho(tmp_path, before):
    values = [0.3, 0.0, 0.05]
    sampler = optuna.samplers.GridSampler({"sam_rho": values}, seed=0)
    best, trials, trainer = search(
        tmp_path, lambda trial: {"sam_rho": trial.suggest_float("sam_rho", 0.0, 1.0)}, 3, sampler, sam_rho=before
    )
    losses = {}
    for logs, weights in trials:
        # Plain training logs no ρ
        rho = logs[0].get("sam_rho", 0.0)
        assert [entry.get("sam_rho", 0.0) for entry in logs] == [rho] * RUN["max_steps"]
        direct = trained(perceptron(), points(40), tmp_path, sam_rho=rho, eval_dataset=points(8), **RUN)
        assert relative_difference(weights, flat(direct.model)) < 1e-12
        losses[rho] = direct.evaluate()["eval_loss"]
    assert sorted(losses) == sorted(values)
    assert relative_difference(trials[0][1], trials[1][1]) > 1e-3
    assert isinstance(trainer.args.sam_rho, float)
    # The best trial is the one with the lowest loss at evaluation
    assert best.hyperparameters["sam_rho"] == min(losses, key=losses.get)
    assert best.objective == pytest.approx(min(losses.values()), rel=1e-9)


def test_search_over_ascent_steps_and_groups(tmp_path):
    options = [
        {"sam_ascent_steps": 1, "sam_m": 4},
        {"sam_ascent_steps": 2, "sam_m": 2},
    ]

    def space(trial):
        return dict(options[trial.suggest_int("option", 0, 1)])

    sampler = optuna.samplers.GridSampler({"option": [0, 1]}, seed=0)
    _, trials, _ = search(tmp_path, space, 2, sampler, sam_rho=0.3)
    expected = []
    for chosen in options:
        direct = perceptron()
        trained(direct, points(40), tmp_path, sam_rho=0.3, **RUN, **chosen)
        expected.append(flat(direct))
    matches = [
        [i for i, weights in enumerate(expected) if relative_difference(found, weights) < 1e-12] for _, found in trials
    ]
    assert sorted(matches) == [[0], [1]]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("sam_rho", -0.1, "a finite number >= 0"), ("sam_ascent_steps", 0, "an integer >= 1")],
)
def test_a_value_that_is_not_allowed_ends_the_search(tmp_path, name, value, allowed):
    with pytest.raises(ValueError) as error:
        search(tmp_path, lambda trial: {name: value}, 1)
    assert str(error.value) == f"{name}={value} is not allowed: it must be {allowed}."

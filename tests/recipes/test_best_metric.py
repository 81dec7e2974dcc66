"""The best model is the one with the best value of a metric that evaluations report."""

from __future__ import annotations

import json

import pytest

from sam_hf.metrics import load_metric
from sam_hf.recipes.best_metric import ENTITIES, GENERATED_TEXT, METRICS


@pytest.mark.parametrize(
    "kind, metric, value",
    [
        ("single_label_classification", "classification", 1),
        ("multi_label_classification", "multi_label", [0, 1]),
        ("regression", "regression", 1.0),
        (ENTITIES, "entities", ["B-PER", "O"]),
        (GENERATED_TEXT, "generated_text", "a film"),
    ],
)
def test_the_names_are_those_that_are_computed(kind, metric, value):
    computed = load_metric(metric).compute(predictions=[value] * 2, references=[value] * 2)
    assert set(METRICS[kind]) == set(computed)


def scores(path, numbers):
    path.write_text("text,label\n" + "\n".join(f"good film,{number}" for number in numbers) + "\n")
    return path


@pytest.mark.parametrize("metric", ["mse", "eval_mae", "loss", None])
def test_the_smallest_error_is_the_best(train, tmp_path, metric, capsys):
    """The model learns the number 3 and is validated on −3, so each epoch is worse than the one before."""
    data = ["--train_file", scores(tmp_path / "train.csv", [3.5] * 8)]
    data += ["--validation_file", scores(tmp_path / "validation.csv", [-3.5] * 4)]
    options = "--problem_type regression --num_train_epochs 3 --eval_strategy epoch --save_strategy epoch".split()
    chosen = [] if metric is None else ["--metric_for_best_model", metric]
    output = train(*data, *options, *chosen, "--load_best_model_at_end", "--learning_rate", 0.01)
    state = json.loads((output / "trainer_state.json").read_text())
    errors = [entry["eval_mse"] for entry in state["log_history"] if "eval_mse" in entry]
    assert errors[0] < errors[1] < errors[2]
    assert state["best_model_checkpoint"].endswith("checkpoint-2")
    said = f"metric_for_best_model={(metric or '').removeprefix('eval_')}: the smallest value is the best"
    assert (said in capsys.readouterr().err) == (metric in ("mse", "eval_mae"))

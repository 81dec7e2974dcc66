"""A run whose loss, weights or metrics are NaN or infinite ends with exit status 1, and leaves what was there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import assert_one_line, sam_hf

from sam_hf import SAMTrainer
from sam_hf.errors import DivergedError, UsageError

DIVERGES = ["--learning_rate", "1e30"]


def is_finite(folder: Path) -> bool:
    return all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())


@pytest.fixture
def nan_from(monkeypatch):
    """Make the loss NaN from an update on, counted from 1. `spare` keeps the gradient, and so the weights, finite."""

    def make(first: int, last: int = 10**9, spare: bool = False) -> None:
        compute_loss = SAMTrainer.compute_loss

        def computed(self, model, inputs, *args, **kwargs):
            loss = compute_loss(self, model, inputs, *args, **kwargs)
            if not self.model.training or not first <= self.state.global_step + 1 <= last:
                return loss
            return loss + torch.tensor(torch.nan) if spare else loss * torch.nan

        monkeypatch.setattr(SAMTrainer, "compute_loss", computed)

    return make


@pytest.mark.parametrize("method", ["sam", "none", "msam"])
def test_weights_that_overflow(train, tmp_path, method):
    with pytest.raises(DivergedError) as error:
        train(*DIVERGES, "--sam_method", method, "--num_train_epochs", 2)
    text = str(error.value)
    assert "the weights are NaN or infinite after update" in text and "of 8" in text
    assert (
        f"No model was written to {tmp_path / 'out'}" in text and "Try a smaller learning_rate (it is 1e+30)" in text
    )
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"run.json", "trainer_state.json", "train_results.json", "all_results.json"}
    assert math.isnan(json.loads((tmp_path / "out" / "train_results.json").read_text())["train_loss"])


def test_as_a_user_sees_it(words, tmp_path):
    done = sam_hf("text", *words(*DIVERGES, "--do_eval"))
    assert_one_line(done, "NaN or infinite", "No model was written", status=1)
    assert "last log" not in done.stdout, "Trainer's log filter would show 0"


def test_a_good_model_and_its_card_are_left_alone(train, tmp_path):
    output = train()
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file() and path.name != "run.json"}
    assert {"model.safetensors", "README.md", "train_results.json"} <= before.keys()
    with pytest.raises(DivergedError):
        train(*DIVERGES, "--overwrite_output_dir")
    assert {name: (output / name).read_bytes() for name in before} == before


def test_the_update_and_the_last_good_checkpoint_are_named(train, nan_from, tmp_path):
    nan_from(4)
    with pytest.raises(DivergedError) as error:
        train("--save_strategy", "steps", "--save_steps", 1, "--num_train_epochs", 2)
    assert "the loss is NaN or infinite since update 4 of 8 and the weights are" in str(error.value)
    assert f"its last checkpoint is {tmp_path / 'out' / 'checkpoint-3'}." in str(error.value)
    checkpoints = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert len(checkpoints) == 3 and all(map(is_finite, checkpoints))


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_checkpoints_that_are_not_finite_do_not_take_the_place_of_good_ones(train, nan_from, tmp_path, strategy):
    nan_from(5)
    options = ["--save_strategy", strategy, "--save_steps", 4, "--save_total_limit", 1, "--num_train_epochs", 3]
    with pytest.raises(DivergedError):
        train(*options)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    assert is_finite(tmp_path / "out" / "checkpoint-4")


def test_the_run_stops_at_the_next_log(train, nan_from, monkeypatch):
    nan_from(2)
    steps, step = [], SAMTrainer.training_step
    monkeypatch.setattr(SAMTrainer, "training_step", lambda *args: steps.append(1) or step(*args))
    with pytest.raises(DivergedError):
        train("--num_train_epochs", 10, "--logging_steps", 3)
    assert len(steps) == 3


def test_a_loss_that_is_not_finite_while_the_weights_are(train, nan_from):
    """As with the loss scale of fp16, which skips every update of this kind."""
    nan_from(3, spare=True)
    with pytest.raises(DivergedError, match=r"the loss is NaN or infinite since update 3 of 4\. No model was"):
        train()


def test_a_loss_that_is_finite_again_is_no_failure(train, nan_from):
    nan_from(2, last=3, spare=True)
    assert is_finite(train())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_micro_batch_is_enough(train, nan_from, accumulation):
    nan_from(2, spare=True)
    with pytest.raises(DivergedError, match="since update 2 of 2"):
        options = ["--per_device_train_batch_size", 8 // accumulation, "--gradient_accumulation_steps", accumulation]
        train(*options)


def test_the_best_model_is_written(train, nan_from, tmp_path):
    nan_from(6)
    options = "--num_train_epochs 3 --eval_strategy epoch --save_strategy epoch --load_best_model_at_end".split()
    with pytest.raises(DivergedError) as error:
        train(*options)
    assert f"The best model, that of {tmp_path / 'out' / 'checkpoint-4'}, was written" in str(error.value)
    assert is_finite(tmp_path / "out")


def test_no_best_model_where_its_metric_is_nan(train, monkeypatch, tmp_path):
    def metrics_function(problem_type):
        return lambda prediction: {"accuracy": float("nan"), "f1_macro": 0.5}

    monkeypatch.setattr("sam_hf.recipes.finetune_text.metrics_function", metrics_function)
    options = "--eval_strategy epoch --save_strategy epoch --load_best_model_at_end".split()
    with pytest.raises(DivergedError, match="no evaluation has a finite accuracy, so there is no best model"):
        train(*options, "--metric_for_best_model", "accuracy")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def with_nan(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    next(value for name, value in tensors.items() if name.endswith("word_embeddings.weight"))[7, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_checkpoint_that_came_with_nan(train, tiny_bert, tmp_path):
    broken = with_nan(Path(shutil.copytree(tiny_bert, tmp_path / "broken")))
    with pytest.raises(UsageError) as error:
        train(model=broken)
    assert f"{broken} holds weights that are NaN or infinite (bert.embeddings.word_embeddings" in str(error.value)


def test_nan_is_not_evaluated(train, tmp_path):
    broken = with_nan(train())
    with pytest.raises(UsageError, match="holds weights that are NaN or infinite"):
        train("--do_train", "false", "--do_eval", model=broken, output="evaluated")
    assert not (tmp_path / "evaluated" / "eval_results.json").exists()


def test_an_evaluation_that_overflows(train, monkeypatch, tmp_path):
    """The classes of such an evaluation would be an answer: the greatest of NaN is the first one."""
    forward = torch.nn.Linear.forward

    def overflowing(self, x):
        return forward(self, x) * (1 if self.training or self.out_features != 2 else torch.inf)

    monkeypatch.setattr(torch.nn.Linear, "forward", overflowing)
    with pytest.raises(DivergedError) as error:
        train("--do_eval")
    text = str(error.value)
    assert "eval_loss=nan" in text and "eval_accuracy=nan" in text and "model written to" in text
    assert not (tmp_path / "out" / "README.md").exists()
    assert "NaN" in json.dumps(json.loads((tmp_path / "out" / "eval_results.json").read_text()))

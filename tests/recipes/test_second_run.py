"""A second run in the same folder resumes the same run, and refuses another one by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_text import assert_one_line, sam_hf, save_tiny_bert, write_sentences

from sam_hf import SAMTrainer
from sam_hf.errors import UsageError

SAVES = ["--save_strategy", "steps", "--save_steps", "2"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    """A list with an entry for each training step."""
    taken, step = [], SAMTrainer.training_step
    monkeypatch.setattr(SAMTrainer, "training_step", lambda *args: taken.append(1) or step(*args))
    return taken


DIFFERENT = {
    "--sam_method none": ("sam_method=sam", "sam_method=none"),
    "--sam_rho 0.01": ("sam_rho=None", "sam_rho=0.01"),
    "--learning_rate 1e-4": ("learning_rate=5e-05", "learning_rate=0.0001"),
    "--seed 1": ("seed=42", "seed=1"),
    "--lr_scheduler_type cosine": ("lr_scheduler_type=linear", "lr_scheduler_type=cosine"),
    "--optim sgd": ("optim=adamw_torch_fused", "optim=sgd"),
    "--per_device_train_batch_size 2": ("examples per update=4", "examples per update=2"),
    "--max_train_samples 8": ("max_train_samples=None", "max_train_samples=8"),
    "--label_noise 0.5": ("label_noise=0.0", "label_noise=0.5"),
    "--max_seq_length 8": ("max_seq_length=128", "max_seq_length=8"),
    "--lora_r 2": ("lora_r=None", "lora_r=2"),
    "--train_file OTHER": ("train_file=train.csv", "train_file=other.csv"),
    "--model_name_or_path OTHER": ("model_name_or_path=bert", "model_name_or_path=another"),
}


@pytest.mark.parametrize("option, named", DIFFERENT.items(), ids=DIFFERENT)
def test_another_run_is_refused_by_name(train, tmp_path, option, named):
    output = train(*SAVES)
    before = contents(output)
    name, value = option.split()
    if value == "OTHER":
        of_model = name.startswith("--model")
        value = save_tiny_bert(tmp_path / "another", 1) if of_model else write_sentences(tmp_path / "other.csv", 16, 1)
    with pytest.raises(UsageError) as error:
        train(*SAVES, name, value)
    text = str(error.value)
    assert text.startswith(
        f"output_dir={output} holds checkpoint-4 of a run with {named[0]}; this run asks for {named[1]}"
    )
    assert "give --overwrite_output_dir to start again, another output_dir, or --resume_from_checkpoint" in text
    assert contents(output) == before


def test_data_that_have_changed(train, tmp_path):
    file = write_sentences(tmp_path / "train.csv")
    train(*SAVES, "--train_file", file)
    write_sentences(file, first=1)
    with pytest.raises(
        UsageError, match=r"train_file=train.csv as it was; this run asks for train_file=train.csv with"
    ):
        train(*SAVES, "--train_file", file)


def test_a_copy_is_no_change(train, updates, tiny_bert, sentences, tmp_path):
    """Another machine, another time: what counts is the content."""
    train(*SAVES)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "out", tmp_path / "elsewhere" / "renamed")
    model = shutil.copytree(tiny_bert, tmp_path / "elsewhere" / "model")
    file = shutil.copy(sentences["train"], tmp_path / "elsewhere" / "copy.csv")
    os.utime(file, (0, 0))
    updates.clear()
    train(*SAVES, "--train_file", file, output="elsewhere/renamed", model=model)
    assert not updates


NOT_DIFFERENT = [
    "--do_eval",
    "--validation_file TRAIN --do_eval",
    "--logging_steps 1 --save_strategy no",
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 2",
    "--max_steps 4",
    "--save_total_limit 3 --per_device_eval_batch_size 2 --sharpness_every_eval --gradient_checkpointing",
]


@pytest.mark.parametrize("options", NOT_DIFFERENT)
def test_nothing_is_left_to_train(train, updates, sentences, capsys, options):
    output = train(*SAVES)
    before = contents(output)
    updates.clear()
    train(*SAVES, *options.replace("TRAIN", str(sentences["train"])).split())
    assert not updates
    said = capsys.readouterr()
    assert f"resuming {output / 'checkpoint-4'}: 4 of 4 updates done; --overwrite_output_dir starts again" in said.err
    assert "nothing was left to train" in said.out
    after = contents(output)
    evaluated = {"eval_results.json", "all_results.json"} if "--do_eval" in options else set()
    assert {name for name in after if after[name] != before.get(name)} == evaluated
    assert "## Sharpness-Aware Minimization" in (output / "README.md").read_text()
    if evaluated:
        results = json.loads((output / "all_results.json").read_text())
        assert results["train_loss"] > 0 and "eval_accuracy" in results


def test_as_a_user_sees_it(words, tmp_path):
    first = sam_hf("text", *words(*SAVES))
    assert first.returncode == 0, first.stderr
    before = contents(tmp_path / "out")
    assert_one_line(sam_hf("text", *words(*SAVES, "--sam_method", "none")), "sam_method=none")
    again = sam_hf("text", *words(*SAVES))
    assert again.returncode == 0, again.stderr
    assert f"resuming {tmp_path / 'out' / 'checkpoint-4'}: 4 of 4 updates done" in again.stderr
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("steps", [4, 3], ids=["at the end of an epoch", "in the middle of one"])
@pytest.mark.parametrize("adapters", [[], ["--lora_r", "2"]], ids=["all weights", "adapters"])
def test_the_weights_of_the_checkpoint_are_evaluated(train, updates, steps, adapters):
    options = [*SAVES, "--max_steps", steps, "--do_eval", "--learning_rate", 0.05, *adapters]
    output = train(*options)
    first = json.loads((output / "eval_results.json").read_text())
    updates.clear()
    train(*options)
    second = json.loads((output / "eval_results.json").read_text())
    assert not updates
    assert second["eval_loss"] == pytest.approx(first["eval_loss"], abs=1e-7)


def test_the_best_weights_are_evaluated(train, updates):
    options = "--save_strategy epoch --eval_strategy epoch --num_train_epochs 3 --load_best_model_at_end".split()
    output = train(*options, "--learning_rate", 0.5)
    state = json.loads((output / "trainer_state.json").read_text())
    assert not state["best_model_checkpoint"].endswith("checkpoint-12"), "the last one is not the best"
    updates.clear()
    train(*options, "--learning_rate", 0.5)
    assert not updates
    second = json.loads((output / "eval_results.json").read_text())
    assert second["eval_loss"] == pytest.approx(state["best_metric"], abs=1e-6)


def test_other_examples_are_evaluated_anew(train, tmp_path):
    options = [*SAVES, "--do_eval", "--eval_strategy", "epoch"]
    output = train(*options)
    other = write_sentences(tmp_path / "other.csv", 3)
    train(*options, "--validation_file", other)
    first, second = (json.loads((output / name).read_text()) for name in ("train_results.json", "eval_results.json"))
    assert first["train_loss"] > 0
    assert second["eval_samples_per_second"] > 0
    state = json.loads((output / "trainer_state.json").read_text())
    assert second["eval_loss"] != next(e["eval_loss"] for e in state["log_history"] if "eval_loss" in e)


def test_a_run_that_was_stopped_before_its_end_is_written(train, updates, capsys):
    """It was stopped after its last checkpoint, while a model of an earlier run is in the folder."""
    whole = weights(train(*SAVES, output="whole"))
    output = train(*SAVES, "--seed", 1)
    train(*SAVES, "--overwrite_output_dir")
    left = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(left | {"complete": False}))
    shutil.copy(train("--seed", 2, output="other") / "model.safetensors", output / "model.safetensors")
    (output / "README.md").unlink()
    updates.clear()
    train(*SAVES)
    assert not updates and same(weights(output), whole)
    assert "## Sharpness-Aware Minimization" in (output / "README.md").read_text()
    assert f"model written to {output}" in capsys.readouterr().out


def test_a_longer_run_goes_on(train, updates, capsys):
    output = train(*SAVES)
    updates.clear()
    train(*SAVES, "--num_train_epochs", 2)
    assert len(updates) == 4
    line = f"resuming {output / 'checkpoint-4'}: 4 of 8 updates done (it was made for 4: schedules go on as for 8)"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("shorter", ["--num_train_epochs 1", "--max_steps 3", "--num_train_epochs 1.5"])
def test_a_shorter_run_is_refused(train, tmp_path, shorter):
    train(*SAVES, "--num_train_epochs", 2)
    with pytest.raises(UsageError, match=r"checkpoint-8 was trained for 8 updates, and this run asks for [346]: give"):
        train(*SAVES, *shorter.split())


def test_a_run_that_was_stopped_in_the_middle(train, updates, capsys):
    whole = train(*SAVES, output="whole")
    output = train(*SAVES)
    shutil.rmtree(output / "checkpoint-4")
    updates.clear()
    train(*SAVES)
    assert len(updates) == 2 and same(weights(output), weights(whole))
    assert f"resuming {output / 'checkpoint-2'}: 2 of 4 updates done" in capsys.readouterr().err


def test_a_run_that_started_again_resumes_its_own_checkpoint(train, updates, capsys):
    """Its checkpoints have lower numbers than those that an earlier run has left."""
    output = train(*SAVES, "--num_train_epochs", 2)
    train(*SAVES, "--learning_rate", 1e-3, "--overwrite_output_dir")
    assert (output / "checkpoint-8").exists()
    shutil.rmtree(output / "checkpoint-4")
    updates.clear()
    train(*SAVES, "--learning_rate", 1e-3)
    assert len(updates) == 2
    for path in output.glob("checkpoint-[24]"):
        shutil.rmtree(path)
    updates.clear()
    train(*SAVES, "--learning_rate", 1e-3)
    assert len(updates) == 4
    assert (
        f"{output / 'checkpoint-8'} is of an earlier run in this folder: it is not resumed" in capsys.readouterr().err
    )


def test_a_checkpoint_without_a_record(train, updates, capsys):
    """One of plain Trainer, or of an older version."""
    output = train(*SAVES)
    for path in output.rglob("run.json"):
        path.unlink()
    before = contents(output)
    updates.clear()
    train(*SAVES, "--learning_rate", 1)
    assert not updates and contents(output) == before
    assert "checkpoint-4 had the same options and data is not known" in capsys.readouterr().err


def test_a_checkpoint_that_is_named_may_have_other_options(train, updates, capsys):
    output = train(*SAVES)
    updates.clear()
    options = ["--learning_rate", 1e-3, "--num_train_epochs", 2, "--resume_from_checkpoint", output / "checkpoint-4"]
    train(*SAVES, *options)
    assert len(updates) == 4
    assert "it goes on with learning_rate=0.001 (was 5e-05)" in capsys.readouterr().err
    shutil.rmtree(output / "checkpoint-8")
    updates.clear()
    train(*SAVES, *options[:4])
    assert len(updates) == 2, "it goes on from its own checkpoint-6"


def test_an_evaluation_uses_the_model_that_was_given(train, tmp_path):
    """And not a checkpoint that happens to lie in its output folder."""
    trained = train("--learning_rate", 0.05, output="trained")
    train(*SAVES, "--seed", 3)
    evaluate = ["--do_train", "false", "--do_eval"]
    losses = [
        json.loads((train(*evaluate, model=trained, output=output) / "eval_results.json").read_text())["eval_loss"]
        for output in ("out", "empty")
    ]
    assert losses[0] == losses[1]


def test_weights_without_an_optimizer_are_not_resumed(train, updates, caplog):
    output = train(*SAVES, "--save_only_model")
    updates.clear()
    train(*SAVES, "--save_only_model")
    assert len(updates) == 4
    assert (
        f"{output / 'checkpoint-4'} is skipped, because it is incomplete: it has no state of the optimizer"
        in caplog.text
    )


def test_the_record_holds_no_paths(train, tmp_path, tiny_bert):
    output = train(*SAVES)
    for path in (output / "run.json", output / "checkpoint-2" / "run.json"):
        text = path.read_text()
        assert str(tmp_path) not in text and str(tiny_bert.parent) not in text

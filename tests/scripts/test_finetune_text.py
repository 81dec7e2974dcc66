"""The text script from end to end on a tiny BERT."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

QUIET = (
    "--report_to none --disable_tqdm true --use_cpu true --per_device_train_batch_size 8 --learning_rate 1e-3 "
    "--sam_rho 0.05 --save_strategy no"
).split()


def results(folder) -> dict:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def predictions(folder) -> list[dict]:
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def train(finetune_text, bert, tmp_path):
    """Run the script in this process, with options for everything except the data."""

    def call(*options, output="output", model=bert):
        shared = ["--model_name_or_path", model, "--output_dir", tmp_path / output, *QUIET]
        finetune_text.main([*map(str, shared), *map(str, options)])
        return tmp_path / output

    return call


def test_config_to_report(command, bert, text_files, tmp_path):
    output = tmp_path / "output"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model_name_or_path: {bert}\n"
        f"train_file: {text_files['train']}\n"
        f"validation_file: {text_files['validation']}\n"
        f"test_file: {text_files['test']}\n"
        f"output_dir: {output}\n"
        "do_train: true\n"
        "do_eval: true\n"
        "do_predict: true\n"
        "eval_strategy: epoch\n"
        "eval_on_start: true\n"
        "per_device_train_batch_size: 8\n"
        "gradient_accumulation_steps: 2\n"
        "num_train_epochs: 5\n"
        "logging_steps: 1\n"
        "report_to: [none]\n"
        "sam_rho: 0.5\n"
        "label_noise: 0.2\n",
        encoding="utf-8",
    )
    run = command("finetune_text", "--config", config, "--num_train_epochs", 2, "--sam_rho", 0.02)
    assert run.returncode == 0, run.stderr

    report = results(output)
    assert report["epoch"] == 2
    assert (report["train_label_noise"], report["train_labels_replaced"]) == (0.2, 7)  # round(0.2 · 36)
    assert 0 <= report["eval_accuracy"] <= 1
    assert report["eval_loss"] > 0
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 6  # two epochs of updates with 8+8, 8+8 and 4 examples
    logged = [entry for entry in state["log_history"] if "sam_rho" in entry]
    assert len(logged) == 6
    assert all(entry["sam_rho"] == 0.02 for entry in logged)
    assert sum("eval_loss" in entry for entry in state["log_history"]) == 3  # at the start and after each epoch

    rows = predictions(output)
    assert len(rows) == 4
    for row in rows:
        shares = {name: float(row[f"probability_{name}"]) for name in ("0", "1")}
        assert sum(shares.values()) == pytest.approx(1)
        assert row["prediction"] == max(shares, key=shares.get)

    assert "method sam, label noise 0.2 (7 labels replaced)" in run.stdout
    assert f"model written to {output}" in run.stdout
    for line in ("accuracy: ", "sharpness L(w+ε) - L(w)", "ρ: 0.02"):
        assert line in run.stdout


def test_resuming_equals_the_run_in_one_go(train, text_files):
    data = ["--train_file", text_files["train"], "--do_train", "--max_steps", 6]
    whole = train(*data, "--save_strategy", "steps", "--save_steps", 4, output="whole")
    cut = train(*data, "--save_strategy", "steps", "--save_steps", 4, output="cut")
    # This is what a run leaves that was stopped after step 4
    shutil.rmtree(cut / "checkpoint-6")
    (cut / "model.safetensors").unlink()
    train(*data, output="cut")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    state = json.loads((cut / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 6


@pytest.mark.parametrize("overwrite, steps", [([], 1), (["--overwrite_output_dir"], 5)])
def test_resuming_or_starting_again(train, text_files, monkeypatch, overwrite, steps):
    from sam_hf import SAMTrainer

    taken = []
    original = SAMTrainer.training_step
    data = ["--train_file", text_files["train"], "--do_train"]
    train(*data, "--max_steps", 4, "--save_strategy", "steps", "--save_steps", 4)
    monkeypatch.setattr(SAMTrainer, "training_step", lambda *args: taken.append(1) or original(*args))
    train(*data, "--max_steps", 5, *overwrite)
    assert len(taken) == steps


def test_training_learns(train, text_files):
    files = ["--train_file", text_files["train"], "--validation_file", text_files["validation"]]
    output = train(*files, "--do_train", "--do_eval", "--num_train_epochs", 20, "--learning_rate", 1e-2)
    assert results(output)["eval_accuracy"] == 1


def test_evaluation_of_a_finetuned_folder(train, write_csv, text_files):
    named = [["good film", "kind"], ["awful film", "unkind"]] * 8
    files = ["--train_file", write_csv("train.csv", ["text", "label"], named)]
    finetuned = train(*files, "--do_train", "--max_steps", 2)
    held_out = write_csv("held.csv", ["text", "label"], [["good plot", "kind"]])
    unlabelled = write_csv("test.csv", ["text"], [["bad plot"], ["fine plot"]])
    weights = load_file(finetuned / "model.safetensors")
    options = ["--validation_file", held_out, "--test_file", unlabelled, "--do_eval", "--do_predict"]
    output = train(*options, model=finetuned, output="evaluated")
    assert "eval_accuracy" in results(output)
    assert {row["prediction"] for row in predictions(output)} <= {"kind", "unkind"}
    assert len(predictions(output)) == 2
    assert all(torch.equal(weights[k], v) for k, v in load_file(finetuned / "model.safetensors").items())


def test_pairs_of_sentences(train, write_csv, monkeypatch):
    rows = [["good film", "great film", "same"], ["good film", "bad plot", "other"]] * 6
    file = write_csv("pairs.csv", ["premise", "hypothesis", "relation"], rows)
    from sam_hf import SAMTrainer

    seen = []
    original = SAMTrainer.train
    monkeypatch.setattr(
        SAMTrainer, "train", lambda self, **kw: seen.append(self.train_dataset[0]) or original(self, **kw)
    )
    columns = ["--text_column", "premise", "--text_pair_column", "hypothesis", "--label_column", "relation"]
    train("--train_file", file, *columns, "--do_train", "--max_steps", 1)
    # [CLS] premise [SEP] hypothesis [SEP]
    assert seen[0]["token_type_ids"] == [0] * 4 + [1] * 3
    assert seen[0]["input_ids"].count(3) == 2


def test_regression(train, write_jsonl):
    rows = [{"text": "good film", "label": 1.5}, {"text": "bad film", "label": -0.5}] * 6
    file = write_jsonl("scores.jsonl", rows)
    files = ["--train_file", file, "--validation_file", file, "--test_file", file]
    output = train(*files, "--do_train", "--do_eval", "--do_predict", "--max_steps", 2)
    assert results(output)["eval_mse"] == pytest.approx(results(output)["eval_loss"], rel=1e-4)
    assert list(predictions(output)[0]) == ["index", "prediction"]
    assert len(predictions(output)) == 12


def test_several_labels(train, write_jsonl):
    rows = [{"text": "good film", "labels": ["kind", "film"]}, {"text": "bad", "labels": []}] * 6
    file = write_jsonl("tags.jsonl", rows)
    files = ["--train_file", file, "--validation_file", file, "--test_file", file]
    output = train(*files, "--do_train", "--do_eval", "--do_predict", "--max_steps", 60, "--learning_rate", 1e-2)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"
    assert results(output)["eval_f1_micro"] == 1
    assert [row["prediction"] for row in predictions(output)[:2]] == ["film kind", ""]


def test_lora_saves_an_adapter(train, text_files):
    options = ["--lora_r", 2, "--lora_target_modules", "query", "value"]
    output = train("--train_file", text_files["train"], "--do_train", "--max_steps", 2, *options)
    adapter = load_file(output / "adapter_model.safetensors")
    assert not (output / "model.safetensors").exists()
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in adapter.items())
    assert any("classifier" in name for name in adapter)
    assert not any("key" in name for name in adapter)


def test_data_set_saved_to_a_folder(train, tmp_path):
    rows = {"text": ["good film", "bad film"] * 4, "label": [1, 0] * 4}
    DatasetDict(train=Dataset.from_dict(rows), validation=Dataset.from_dict(rows)).save_to_disk(tmp_path / "saved")
    options = ["--dataset_name", tmp_path / "saved", "--do_train", "--do_eval", "--max_steps", 1]
    assert "eval_accuracy" in results(train(*options, "--max_eval_samples", 3))
    assert results(tmp_path / "output")["eval_samples_per_second"] > 0

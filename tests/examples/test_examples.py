"""Each example learns with SAM, writes the same files as the scripts, resumes, and refuses wrong use."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

QUIET = (
    "--report_to none --disable_tqdm true --use_cpu true --save_strategy no --logging_steps 1 --sam_rho 0.01".split()
)
OF = {
    "token_classification": ["--learning_rate", "1e-2"],
    "sft": ["--learning_rate", "1e-2", "--bf16", "false", "--gradient_checkpointing", "false"],
    "seq2seq": ["--learning_rate", "1e-2", "--predict_with_generate", "--source_prefix", "translate: "],
}
MEASURE = {"token_classification": "eval_f1", "sft": "eval_mean_token_accuracy", "seq2seq": "eval_chrf"}


@pytest.fixture
def inputs(bert, llama, t5, tag_files, text_files, pair_files):
    return {
        "token_classification": (bert, tag_files),
        "sft": (llama, text_files),
        "seq2seq": (t5, pair_files),
    }


@pytest.fixture
def train(example, inputs, tmp_path):
    """Run an example in this process and return its output folder."""

    def call(name: str, *options, output: str = "output") -> Path:
        model, files = inputs[name]
        data = [word for split, file in files.items() for word in (f"--{split}_file", file)]
        words = ["--model_name_or_path", model, "--output_dir", tmp_path / output, *data, *QUIET, *OF[name], *options]
        example(name)([str(word) for word in words])
        return tmp_path / output

    return call


def predictions(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return [row["prediction"] for row in csv.DictReader(file)]


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


@pytest.mark.parametrize(
    "name, epochs, least", [("token_classification", 8, 1.0), ("sft", 10, 0.8), ("seq2seq", 10, 99.9)]
)
def test_learns_with_sam(train, name, epochs, least):
    options = ["--do_train", "--do_eval", "--eval_on_start", "--num_train_epochs", epochs]
    predicted = [] if name == "sft" else ["--do_predict"]
    folder = train(name, *options, *predicted)
    entries = history(folder)
    before = next(entry[MEASURE[name]] for entry in entries if MEASURE[name] in entry)
    assert before < 0.5 * least
    assert results(folder)[MEASURE[name]] >= least
    steps = [entry for entry in entries if "sam_sharpness" in entry]
    assert len(steps) == entries[-1]["step"] > 0
    assert all(entry["sam_rho"] == 0.01 for entry in steps)
    assert any(entry["sam_sharpness"] > 0 for entry in steps)
    assert "## Sharpness-Aware Minimization" in (folder / "README.md").read_text(encoding="utf-8")
    if name == "token_classification":
        assert predictions(folder) == ["O B-PER I-PER", "B-PER O O O O O O"]
    if name == "seq2seq":
        assert predictions(folder) == ["la maison", "chien"]


@pytest.mark.parametrize("name", OF)
def test_resuming_equals_the_run_in_one_go(train, name):
    options = ["--do_train", "--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2]
    whole, cut = train(name, *options, output="whole"), train(name, *options, output="cut")
    # This is what a run leaves that was stopped after step 2
    shutil.rmtree(cut / "checkpoint-4")
    (cut / "model.safetensors").unlink()
    train(name, *options, output="cut")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert history(cut)[-1]["step"] == 4


@pytest.mark.parametrize("name", OF)
def test_adapters(train, name):
    folder = train(name, "--do_train", "--do_eval", "--max_steps", 2, "--lora_r", 2)
    adapter = load_file(folder / "adapter_model.safetensors")
    assert any("lora_B" in key and tensor.abs().max() > 0 for key, tensor in adapter.items())
    assert not (folder / "model.safetensors").exists()
    assert results(folder)["eval_loss"] > 0
    assert "## Sharpness-Aware Minimization" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OF)
def test_accumulated_micro_batches_are_the_large_batch(train, name):
    """Sentences differ in length, so a mean of the micro-batches' means would be another loss."""
    options = ["--do_train", "--max_steps", 3, "--optim", "sgd", "--learning_rate", 0.1, "--sam_rho", 0.2]
    options += ["--max_grad_norm", 0]  # clipping would hide a factor
    whole = train(name, *options, "--per_device_train_batch_size", 8, output="whole")
    two = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    cut = train(name, *options, *two, output="cut")
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    for key, expected in first.items():
        torch.testing.assert_close(second[key], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("token_classification", ["--sam_rho", "-1"], "sam_rho=-1.0 is not allowed"),
        ("token_classification", ["--sam_roh", "1"], "did you mean sam_rho?"),
        ("token_classification", ["--tags_column", "tag"], "no column tag in the train split: the columns are tokens"),
        ("sft", ["--do_predict"], "do_predict is not offered"),
        ("sft", ["--dataset_text_field", "story"], "the columns are text: there must be story"),
        ("seq2seq", ["--target_column", "german"], "no column german in the train split"),
        ("seq2seq", ["--predict_with_generate", "false", "--do_predict"], "it needs predict_with_generate"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(train, name, options, message, capsys):
    from sam_hf.command_line import run

    with pytest.raises(SystemExit) as stop:
        run(lambda: train(name, "--do_train", *options))
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1
    assert message in error[-1]


def test_words_and_tags_that_do_not_match(train, tmp_path):
    from sam_hf.errors import UsageError

    file = tmp_path / "bad.csv"
    file.write_text("words,tags\nanna sees,B-PER\n", encoding="utf-8")
    with pytest.raises(UsageError, match="example 0 of the train split has 2 words and 1 tags"):
        train("token_classification", "--do_train", "--train_file", file)


def test_parts_of_speech_from_csv(train, tmp_path):
    """Tags that are not entities are measured by accuracy and F1 of words, without seqeval."""
    file = tmp_path / "words.csv"
    file.write_text("words,tags\n" + "the dog sees carla,DET NOUN VERB NAME\na house,DET NOUN\n" * 8, encoding="utf-8")
    files = ["--train_file", file, "--validation_file", file, "--test_file", file]
    folder = train("token_classification", "--do_train", "--do_eval", "--do_predict", *files, "--num_train_epochs", 15)
    assert results(folder)["eval_accuracy"] == results(folder)["eval_f1_macro"] == 1
    assert predictions(folder)[:2] == ["DET NOUN VERB NAME", "DET NOUN"]


def test_evaluation_of_the_trained_model(train, inputs):
    folder = train("token_classification", "--do_train", "--num_train_epochs", 8)
    files = inputs["token_classification"][1]
    options = ["--model_name_or_path", folder, "--do_eval", "--do_predict", "--validation_file", files["validation"]]
    evaluated = train("token_classification", *options, output="evaluated")
    assert results(evaluated)["eval_f1"] == 1
    assert not (evaluated / "model.safetensors").exists()


def test_conversations(train, llama, tmp_path, capsys):
    from sam_hf.errors import UsageError

    rows = [{"messages": [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "sees"}]}] * 8
    file, template = tmp_path / "chat.jsonl", tmp_path / "template.jinja"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    template.write_text("{% for m in messages %}{{ m['content'] + ' </s> ' }}{% endfor %}", encoding="utf-8")
    with pytest.raises(UsageError, match="no chat template"):
        train("sft", "--do_train", "--train_file", file, "--max_steps", 1)
    folder = train("sft", "--do_train", "--train_file", file, "--max_steps", 1, "--chat_template_path", template)
    assert "sam_sharpness" in history(folder)[0]

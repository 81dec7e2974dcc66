"""`sam-hf sharpness` reads examples as training does, says what it reads, and refuses what training refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file, save_file
from sharpness_runs import QUICK

from sam_hf.commands.sharpness import command
from sam_hf.errors import UsageError

ROWS = [{"text": text, "label": label} for text, label in (("good film", 1), ("bad plot", 0)) * 4]


@pytest.fixture
def jsonl(tmp_path):
    def write(rows):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def without_model(monkeypatch):
    """The model must not be loaded."""

    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(command, "load_model", load)


def test_the_line_says_what_is_read(bert, reviews, measure, capsys):
    measure(bert, "--train_file", reviews, "--hessian", "--max_examples", 4)
    assert "text: text; label: label, 2 classes: bad, good" in capsys.readouterr().out


@pytest.mark.usefixtures("without_model")
def test_missing_labels(bert, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features).save_to_disk(tmp_path / "data")
    with pytest.raises(UsageError, match="1 of 3 examples have no label"):
        command.main(["--model", str(bert), "--dataset_name", str(tmp_path / "data"), *QUICK])


def test_missing_labels_can_be_left_out(bert, tmp_path, measure):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features).save_to_disk(tmp_path / "data")
    measured = measure(bert, "--dataset_name", tmp_path / "data", "--drop_unlabelled", "--hessian")
    assert measured["settings"]["examples"] == 2


@pytest.mark.usefixtures("without_model")
def test_an_example_without_a_text(bert, jsonl):
    rows = [*ROWS, {"text": None, "label": 0}]
    names = [{**row, "label": ["bad", "good"][row["label"]]} for row in rows]
    with pytest.raises(UsageError, match="the column text of the train split has 1 of 9 examples without a text"):
        command.main(["--model", str(bert), "--train_file", str(jsonl(names)), *QUICK])


def test_weights_that_are_not_finite(bert, reviews, tmp_path):
    weights = load_file(bert / "model.safetensors")
    name = next(name for name in weights if "classifier" in name)
    weights[name] = torch.full_like(weights[name], np.nan)
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="on these examples is nan: it must be finite"):
        command.main(["--model", str(tmp_path), "--train_file", str(reviews), "--out", str(tmp_path / "out"), *QUICK])

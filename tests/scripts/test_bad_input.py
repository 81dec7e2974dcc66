"""Wrong use of the scripts ends with exit status 2 and one line that names what was given, without a traceback."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="module")
def files(text_files, image_folder, write_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "unreadable.yaml").write_text("sam_rho: [0.1\n", encoding="utf-8")
    (folder / "unknown.yaml").write_text("sam_roh: 0.1\n", encoding="utf-8")
    shutil.copytree(image_folder, folder / "broken")
    (folder / "broken" / "dark" / "torn.png").write_bytes(b"\x89PNG torn")
    return {
        "train": text_files["train"],
        "unreadable": folder / "unreadable.yaml",
        "unknown": folder / "unknown.yaml",
        "broken": folder / "broken",
        "unlabelled": write_csv("unlabelled.csv", ["sentence", "score"], [["a film", 1]]),
        "empty": write_csv("empty.csv", ["sentence", "label"], []),
        "unseen": write_csv("unseen.csv", ["sentence", "label"], [["a film", 7]]),
    }


# {name} stands for a file of the fixture above. The other options that the run needs are correct
TEXT = {
    "negative rho": ("--sam_rho=-0.1", "sam_rho=-0.1"),
    "rho not a number": ("--sam_rho nan", "sam_rho=nan"),
    "rho a word": ("--sam_rho wide", "wide"),
    "unknown method": ("--sam_method sharp", "sharp"),
    "m fits no batch": ("--sam_m 3", "sam_m=3"),
    "noise above one": ("--label_noise 1.5", "label_noise=1.5"),
    "missing file": ("--train_file nowhere.csv", "nowhere.csv"),
    "no label column": ("--train_file {unlabelled}", "sentence, score"),
    "empty split": ("--train_file {empty}", "empty"),
    "label unseen in training": ("--do_eval --validation_file {unseen}", "label 7"),
    "hub name beside files": ("--dataset_name imdb", "imdb"),
    "no such model": ("--model_name_or_path /nowhere/model", "/nowhere/model"),
    "unreadable config": ("--config {unreadable}", "unreadable.yaml"),
    "unknown key in config": ("--config {unknown}", "did you mean sam_rho?"),
    "unknown option": ("--learning_rat 1", "did you mean learning_rate?"),
}


def assert_one_line(result, expected: str) -> None:
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("options, expected", TEXT.values(), ids=TEXT)
def test_text(command, bert, files, tmp_path, options, expected):
    shared = ["--model_name_or_path", bert, "--train_file", files["train"], "--do_train"]
    shared += ["--output_dir", tmp_path / "output"]
    assert_one_line(command("finetune_text", *shared, *options.format(**files).split()), expected)
    assert not (tmp_path / "output" / "model.safetensors").exists()


def test_broken_image(command, vit, files, tmp_path):
    options = ["--model_name_or_path", vit, "--train_dir", files["broken"], "--do_train"]
    result = command("finetune_image", *options, "--output_dir", tmp_path / "output")
    assert_one_line(result, "torn.png")

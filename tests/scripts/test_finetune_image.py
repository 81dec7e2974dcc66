"""The image script from end to end, on a tiny ViT and a tiny timm network with BatchNorm."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

QUIET = (
    "--report_to none --disable_tqdm true --use_cpu true --per_device_train_batch_size 4 --save_strategy no "
    "--sam_rho 0.05 --gradient_accumulation_steps 2"
).split()


def results(folder) -> dict:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


@pytest.fixture
def train(finetune_image, tmp_path):
    def call(model, *options, output="output"):
        shared = ["--model_name_or_path", model, "--output_dir", tmp_path / output, *QUIET]
        finetune_image.main([*map(str, shared), *map(str, options)])
        return tmp_path / output

    return call


def test_class_folders_on_vit(train, vit, image_folder):
    folders = ["--train_dir", image_folder, "--validation_dir", image_folder, "--test_dir", image_folder]
    options = ["--do_train", "--do_eval", "--do_predict", "--num_train_epochs", 15, "--learning_rate", 1e-2]
    output = train(vit, *folders, *options, "--crop_scale_min", 0.5)
    # The classes differ in brightness
    assert results(output)["eval_accuracy"] == 1
    with (output / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # The class folders come in the order of their names
    assert [row["prediction"] for row in rows] == ["bright"] * 6 + ["dark"] * 7
    assert all(float(row["probability_dark"]) + float(row["probability_bright"]) == pytest.approx(1) for row in rows)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "bright", "1": "dark"}
    assert (output / "preprocessor_config.json").exists()


@pytest.mark.parametrize("mode, moves", [("frozen", False), ("first", True)])
def test_running_statistics_of_a_timm_checkpoint(train, timm_checkpoint, image_folder, mode, moves):
    options = ["--do_train", "--max_steps", 2, "--sam_batch_norm", mode]
    output = train(timm_checkpoint, "--train_dir", image_folder, *options)
    before = load_file(timm_checkpoint / "model.safetensors")
    after = {
        name.removeprefix("timm_model."): tensor for name, tensor in load_file(output / "model.safetensors").items()
    }
    statistics = [name for name in before if "running_" in name]
    assert statistics
    equal = [torch.equal(before[name], after[name]) for name in statistics]
    assert not any(equal) if moves else all(equal)
    assert not torch.equal(before["conv1.0.weight"], after["conv1.0.weight"])


def test_parquet_of_encoded_images(train, vit, image_folder, tmp_path):
    files = sorted(image_folder.rglob("*.png"))
    rows = {
        "picture": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [file.parent.name for file in files],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "images.parquet")
    data = ["--train_file", tmp_path / "images.parquet", "--validation_file", tmp_path / "images.parquet"]
    options = ["--image_column", "picture", "--do_train", "--do_eval", "--max_steps", 1]
    output = train(vit, *data, *options)
    assert "eval_accuracy" in results(output)


def test_lora_on_vit(train, vit, image_folder):
    output = train(vit, "--train_dir", image_folder, "--do_train", "--max_steps", 2, "--lora_r", 2)
    adapter = load_file(output / "adapter_model.safetensors")
    assert not (output / "model.safetensors").exists()
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in adapter.items())
    assert any("classifier" in name for name in adapter)


def test_label_noise_stays_out_of_validation(train, vit, image_folder, monkeypatch):
    from sam_hf import SAMTrainer

    seen = []
    original = SAMTrainer.train
    monkeypatch.setattr(SAMTrainer, "train", lambda self, **kwargs: seen.append(self) or original(self, **kwargs))
    folders = ["--train_dir", image_folder, "--validation_dir", image_folder]
    train(vit, *folders, "--do_train", "--do_eval", "--max_steps", 1, "--label_noise", 0.4)
    noisy, clean = ([row["labels"] for row in data] for data in (seen[0].train_dataset, seen[0].eval_dataset))
    assert sum(a != b for a, b in zip(noisy, clean, strict=True)) == 5  # round(0.4 · 13)
    assert sorted(clean) == [0] * 6 + [1] * 7

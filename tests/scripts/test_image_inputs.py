"""How the image script handles image sizes, damaged images and unusual folder names, and the model that it saves."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from sam_hf.errors import UsageError


def png(size: int = 20, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """A plain parquet file of bytes and integers, in which nothing marks the images."""

    def write(images: list[bytes], labels: list[int] | None = None):
        path = tmp_path / "images.parquet"
        Dataset.from_dict({"image": images, "label": labels or [i % 3 for i in range(len(images))]}).to_parquet(path)
        return path

    return write


@pytest.mark.parametrize("checkpoint", ["vit", "timm_checkpoint"])
def test_saved_model_predicts_what_the_script_predicted(train_images, checkpoint, request, image_folder):
    from transformers import pipeline

    is_timm = checkpoint == "timm_checkpoint"
    model = request.getfixturevalue(checkpoint)
    size = ["--image_size", 48] if is_timm else []  # the position embeddings of a ViT fix its size
    output = train_images(
        model, "--train_dir", image_folder, "--test_dir", image_folder, "--do_train", "--do_predict", *size
    )
    with (output / "predictions.csv").open(encoding="utf-8") as file:
        ours = [float(row["probability_dark"]) for row in csv.DictReader(file)]
    assert max(ours) - min(ours) > 1e-3
    files = sorted(image_folder.rglob("*.png"), key=str)
    theirs = [
        {answer["label"]: answer["score"] for answer in answers}["dark"]
        for answers in pipeline("image-classification", str(output), device="cpu")([str(file) for file in files])
    ]
    # PIL and torchvision round resized pixels differently
    assert sorted(theirs) == pytest.approx(sorted(ours), abs=0.02)
    if is_timm:
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
        assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]


def test_size_that_the_checkpoint_cannot_take(train_images, vit, image_folder):
    with pytest.raises(UsageError, match="image_size: the checkpoint does not take 24×24"):
        train_images(vit, "--train_dir", image_folder, "--do_train", "--image_size", 24)


@pytest.mark.parametrize(
    "option", ["image_size=0", "crop_scale_min=0.0", "crop_scale_min=1.5", "horizontal_flip=-0.1"]
)
def test_values_out_of_range(train_images, vit, image_folder, option):
    with pytest.raises(UsageError, match=f"{option} is not allowed"):
        train_images(vit, "--train_dir", image_folder, "--do_train", f"--{option}")


@pytest.mark.parametrize("workers", [0, 2])
def test_image_cut_short_is_named_by_row(train_images, vit, parquet, workers):
    # Its header is sound, so the damage shows in training: in a worker's process or in this one
    images = [png(), png(), png(64)[:1500], png()]
    with pytest.raises(UsageError, match=r"^train row 2: an image without a file name cannot be read"):
        train_images(vit, "--train_file", parquet(images), "--do_train", "--dataloader_num_workers", workers)


def test_image_cut_short_on_the_command_line(command, vit, parquet, tmp_path, two_updates):
    options = ["--model_name_or_path", vit, "--train_file", parquet([png(), png(64)[:1500]]), "--do_train"]
    result = command("finetune_image", *options, "--output_dir", tmp_path / "output", *two_updates)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: train row 1: ")
    assert "Traceback" not in result.stderr


def test_broken_header_stops_the_run_before_the_model_is_loaded(train_images, parquet):
    path = parquet([png(), b"no image"])
    with pytest.raises(UsageError, match="train row 1"):
        train_images("no-such-model", "--train_file", path, "--do_train")


def test_bad_folders(train_images, vit, image_folder, tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        train_images(vit, "--train_dir", tmp_path / "nowhere", "--do_train")
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    with pytest.raises(UsageError, match="cat has no image"):
        train_images(vit, "--train_dir", tmp_path / "classes", "--do_train")
    (tmp_path / "classes" / "cat" / "a.png").write_bytes(png())
    with pytest.raises(UsageError, match="validation split has the label cat"):
        train_images(
            vit, "--train_dir", image_folder, "--validation_dir", tmp_path / "classes", "--do_train", "--do_eval"
        )
    with pytest.raises(UsageError, match="both a file and a folder"):
        train_images(vit, "--train_dir", image_folder, "--train_file", tmp_path / "a.parquet", "--do_train")


def test_classes_and_files_named_like_splits(train_images, vit, tmp_path):
    for name in ("test", "train", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "images" / name / f"validation_{i}.png").write_bytes(png(seed=i))
    output = train_images(vit, "--train_dir", tmp_path / "images", "--do_train")
    assert json.loads((output / "config.json").read_text(encoding="utf-8"))["label2id"].keys() == {
        "cat",
        "test",
        "train",
    }


def test_images_to_predict_need_no_classes(train_images, vit, image_folder, tmp_path):
    trained = train_images(vit, "--train_dir", image_folder, "--do_train", output="trained")
    (tmp_path / "unknown").mkdir()
    for i in range(3):
        (tmp_path / "unknown" / f"{i}.png").write_bytes(png(seed=i))
    output = train_images(trained, "--test_dir", tmp_path / "unknown", "--do_predict")
    rows = (output / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "index,prediction,probability_bright,probability_dark" and len(rows) == 4


def test_folder_saved_by_datasets_with_a_column_of_another_name(train_images, vit, tmp_path):
    from datasets import ClassLabel, DatasetDict, Features
    from datasets import Image as ImageFeature

    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    rows = {"img": [{"bytes": png(seed=i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    data = Dataset.from_dict(rows, features=features)
    DatasetDict(train=data, validation=data).save_to_disk(tmp_path / "saved")
    output = train_images(vit, "--dataset_name", tmp_path / "saved", "--do_train", "--do_eval")
    assert "eval_accuracy" in json.loads((output / "all_results.json").read_text(encoding="utf-8"))


def test_grey_model(train_images, parquet, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_channels=1,
        image_size=16,
        patch_size=8,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "grey")
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        tmp_path / "grey"
    )
    data = parquet([png(seed=i) for i in range(6)])
    output = train_images(
        tmp_path / "grey", "--train_file", data, "--validation_file", data, "--do_train", "--do_eval"
    )
    assert json.loads((output / "config.json").read_text(encoding="utf-8"))["num_channels"] == 1


@pytest.mark.parametrize(
    ("save_steps", "augmentation"),
    [
        # In the middle of an epoch of 3 updates, without random crops. Trainer draws the crops of the batch that it
        # reads ahead before it saves the generators, so plain training resumes with other crops too
        (2, ["--crop_scale_min", "1", "--horizontal_flip", "0"]),
        (3, []),
    ],
)
@pytest.mark.parametrize("family", ["timm_checkpoint", "vit"])
def test_resumed_run_is_the_uninterrupted_one(train_images, request, family, parquet, save_steps, augmentation):
    from safetensors.torch import load_file

    start = request.getfixturevalue(family)
    options = ["--train_file", parquet([png(seed=i) for i in range(9)]), "--do_train", "--max_steps", 5, *augmentation]
    options += ["--save_strategy", "steps", "--save_steps", save_steps, "--optim", "sgd", "--learning_rate", 0.05]
    whole = train_images(start, *options)
    checkpoint = whole / f"checkpoint-{save_steps}"
    again = train_images(start, *options, "--resume_from_checkpoint", checkpoint, output="again")
    first, second, early = (load_file(folder / "model.safetensors") for folder in (whole, again, checkpoint))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], early[name]) for name in first)

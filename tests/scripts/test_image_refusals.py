"""Images that the image script refuses before it loads the model, and odd ones that it trains on."""

from __future__ import annotations

import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import ExifTags
from PIL import Image as PILImage

from sam_hf.errors import UsageError


def encoded(picture: PILImage.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


GREY = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8))
REFUSED = {
    "an array": ([[0, 1], [1, 0]], "it must hold encoded images or file names"),
    "floating-point numbers": (encoded(GREY.convert("F"), "TIFF"), "an image of floating-point numbers"),
    "32-bit integers": (encoded(GREY.convert("I"), "TIFF"), "an image of 32-bit integers"),
    "nothing": (None, "split row 1: there is no image"),
    "no image": (b"no image", "split row 1: .* cannot be read as an image"),
}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("image, message", REFUSED.values(), ids=REFUSED)
def test_refused_in_every_split(train_images, tmp_path, split, image, message):
    options = {"train": "--do_train", "validation": "--do_eval", "test": "--do_predict"}
    given = []
    for name in {"train", split}:
        first = encoded(GREY) if not isinstance(image, list) else image
        images = [first, image] * 2 if name == split else [encoded(GREY)] * 4
        Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}).to_parquet(tmp_path / f"{name}.parquet")
        given += [f"--{name}_file", tmp_path / f"{name}.parquet", options[name]]
    with pytest.raises(UsageError, match=message.replace("split", split)) as error:
        train_images("no-such-model", *given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_exif_fields_are_trained_on(train_images, vit, tmp_path, workers):
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "cam"
    # The name of the camera as one number of floating point: ImageOps.exif_transpose fails to write it again
    odd = bytearray(encoded(GREY, "JPEG", exif=exif))
    make = odd.index(bytes([1, 0x0F, 0, 2]))
    odd[make + 3 : make + 8] = bytes([11, 0, 0, 0, 1])
    files = tmp_path / "images.parquet"
    Dataset.from_dict({"image": [encoded(GREY), bytes(odd)] * 3, "label": [0, 1] * 3}).to_parquet(files)
    limits = ["--max_train_samples", 5, "--dataloader_num_workers", workers]
    assert (train_images(vit, "--train_file", files, "--do_train", *limits) / "model.safetensors").exists()


def test_folders_are_refused_before_the_model_is_loaded(train_images, image_folder, tmp_path):
    for name in ("train", "validation"):
        (tmp_path / "high" / name).mkdir(parents=True)
        for label in ("bright", "dark"):
            (tmp_path / "high" / name / label).symlink_to(image_folder / label)
    with pytest.raises(UsageError, match="names of splits"):
        train_images("no-such-model", "--train_dir", tmp_path / "high", "--do_train")
    given = ["--train_dir", tmp_path / "high/train", "--validation_dir", tmp_path / "high", "--do_train"]
    with pytest.raises(UsageError, match="names of splits"):
        train_images("no-such-model", *given)
    with pytest.raises(UsageError, match="no-such-model"):
        train_images("no-such-model", "--train_dir", tmp_path / "high/train", "--do_train")


def test_one_line_for_what_is_left_out(command, vit, image_folder, tmp_path, two_updates):
    (tmp_path / "images").mkdir()
    for name in ("bright", "dark"):
        (tmp_path / "images" / name).symlink_to(image_folder / name)
    (tmp_path / "images" / "notes.txt").write_text("about them", encoding="utf-8")
    options = ["--model_name_or_path", vit, "--train_dir", tmp_path / "images", "--do_train", *two_updates]
    result = command("finetune_image", *options, "--output_dir", tmp_path / "output")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "notes.txt" in line]
    assert lines == [f"Files that are no images are left out of {tmp_path / 'images'}: 1, the first is notes.txt."]

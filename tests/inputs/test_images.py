"""Tests of decoding, checks and transforms of images against PIL and the image processors of transformers."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Array2D, Array3D, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import (
    ConvNextImageProcessor,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    PoolFormerImageProcessor,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from sam_hf.errors import BrokenImageError, UsageError
from sam_hf.inputs.image_decoding import decode_image
from sam_hf.inputs.image_format import ImageFormat
from sam_hf.inputs.images import ImageTransform, check_images, encoded_images, find_image_column

COLOUR = SimpleNamespace(num_channels=3)
GREY = SimpleNamespace(num_channels=1)
TIMM = {"input_size": [3, 64, 64], "crop_pct": 0.875, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}


def encoded(picture: PILImage.Image, kind: str = "PNG") -> dict:
    file = io.BytesIO()
    picture.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def smooth_picture(height: int = 90, width: int = 120) -> PILImage.Image:
    """Return a picture without details, which resizing of bytes and of tensors would round differently."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 20)]
    return PILImage.fromarray(np.stack(channels, -1).astype(np.uint8))


PROCESSORS = {
    "exact size": ViTImageProcessor(size={"height": 48, "width": 64}),
    "resize, then crop": DeiTImageProcessor(),
    "crop_pct below 384": ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
    "warped from 384": ConvNextImageProcessor(size={"shortest_edge": 384}),
    "crop_pct and a crop size": PoolFormerImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    ),
    "rescaled with an offset": EfficientNetImageProcessor(rescale_offset=True, rescale_factor=1 / 127.5),
    "blue first, not normalised": MobileViTImageProcessor(),
    "timm": TimmWrapperImageProcessor(pretrained_cfg=TIMM),
    "timm, squashed": TimmWrapperImageProcessor(pretrained_cfg={**TIMM, "crop_mode": "squash"}),
}


@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_evaluation_gives_what_the_processor_gives(processor):
    picture = smooth_picture()
    transform = ImageTransform(ImageFormat.of(processor, COLOUR), "image")
    ours = transform({"image": [encoded(picture)]})["pixel_values"][0]
    expected = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == expected.shape and ours.dtype == torch.float32
    assert type(ours) is torch.Tensor
    # PIL, torchvision and numpy round differently, by up to half a pixel of the crop and one or two levels of 256
    assert (ours - expected).abs().mean() < 0.01 * (expected.max() - expected.min())
    assert (ours - expected).abs().max() < 0.05 * (expected.max() - expected.min())


@pytest.mark.parametrize(
    "name",
    ["exact size", "resize, then crop", "crop_pct below 384", "warped from 384", "crop_pct and a crop size"],
)
def test_a_changed_size_is_written_to_the_processor(name):
    processor = type(PROCESSORS[name])(**{k: v for k, v in PROCESSORS[name].to_dict().items() if "_type" not in k})
    format = ImageFormat.of(processor, COLOUR, image_size=32)
    assert format.crop == (32, 32)
    format.write_to(processor, COLOUR)
    assert processor(images=smooth_picture(), return_tensors="pt")["pixel_values"].shape[-2:] == (32, 32)
    assert ImageFormat.of(processor, COLOUR) == format


def test_a_changed_size_is_written_to_timms_configuration():
    config = SimpleNamespace(pretrained_cfg=TIMM)
    format = ImageFormat.of(PROCESSORS["timm"], config, image_size=32)
    assert (format.crop, format.resize) == ((32, 32), 36)
    format.write_to(PROCESSORS["timm"], config)
    assert ImageFormat.of(TimmWrapperImageProcessor(config.pretrained_cfg), config).crop == (32, 32)
    assert TIMM["input_size"] == [3, 64, 64]


def test_training_crops_and_flips_at_random():
    format = ImageFormat.of(PROCESSORS["timm"], COLOUR)
    batch = {"image": [encoded(smooth_picture())], "label": [1]}

    def pixels(**options) -> torch.Tensor:
        return ImageTransform(format, "image", train=True, **options)(batch)["pixel_values"][0]

    torch.manual_seed(0)
    assert not torch.equal(pixels(horizontal_flip=0), pixels(horizontal_flip=0))
    plain = ImageTransform(format, "image")(batch)["pixel_values"][0]
    assert torch.equal(pixels(crop_scale_min=1, horizontal_flip=0), plain)
    assert torch.equal(pixels(crop_scale_min=1, horizontal_flip=1), plain.flip(-1))


def test_transform_works_lazily_after_pickling():
    data = encoded_images(
        Dataset.from_dict({"image": [encoded(smooth_picture())], "labels": [4], "name": ["a"]}), "image"
    )
    transform = ImageTransform(ImageFormat.of(PROCESSORS["timm"], COLOUR), "image", label_column="labels")
    example = data.with_transform(pickle.loads(pickle.dumps(transform)))[0]
    assert set(example) == {"pixel_values", "labels"}
    assert example["pixel_values"].shape == (3, 64, 64) and example["labels"] == 4


def test_no_images_are_no_inputs():
    transform = ImageTransform(ImageFormat.of(PROCESSORS["timm"], COLOUR), "image", label_column="labels")
    assert transform({"image": [], "labels": []}) == {"pixel_values": [], "labels": []}


def test_grey_model_gets_one_channel():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.2, 0.4, 0.6], image_std=[0.5] * 3)
    transform = ImageTransform(ImageFormat.of(processor, GREY), "image")
    picture = encoded(PILImage.new("RGB", (8, 8), (102, 102, 102)))
    # 102/255 is 0.4, the mean over the three channels
    torch.testing.assert_close(transform({"image": [picture]})["pixel_values"][0], torch.zeros(1, 8, 8))


def test_channels_of_other_numbers_are_refused():
    with pytest.raises(UsageError, match="6 channels"):
        ImageFormat.of(PROCESSORS["exact size"], SimpleNamespace(num_channels=6))


class TestChecks:
    def data(self, images: list[dict]) -> Dataset:
        return encoded_images(Dataset.from_dict({"image": images}), "image")

    def test_header_names_row_and_file(self):
        good = encoded(PILImage.new("L", (4, 4)))
        data = self.data([good] * 70 + [{"bytes": b"\x89PNG torn", "path": "torn.png"}])
        with pytest.raises(BrokenImageError, match=r"train row 70: torn\.png cannot be read"):
            check_images(data, "image", "train")

    def test_missing_file(self, tmp_path):
        data = self.data([{"bytes": None, "path": str(tmp_path / "gone.png")}])
        with pytest.raises(BrokenImageError, match=r"row 0: .*gone\.png does not exist"):
            check_images(data, "image", "test")

    def test_no_image(self):
        data = self.data([encoded(PILImage.new("L", (4, 4))), None])
        with pytest.raises(BrokenImageError, match="row 1: there is no image"):
            check_images(data, "image", "test")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
    def test_file_cut_short_is_found_when_decoded(self, kind):
        content = encoded(smooth_picture(), kind)["bytes"]
        data = self.data([{"bytes": content[: len(content) // 2], "path": None}])
        with pytest.raises(BrokenImageError, match="row 0"):
            check_images(data, "image", "train", decoded=True)

    def test_first_image_of_each_kind_is_decoded(self):
        """Pillow may open a kind that it cannot decode: it lacks a codec, or a program that it calls."""
        good, cut = encoded(smooth_picture()), encoded(smooth_picture().convert("L"))
        data = self.data([good, good, {**cut, "bytes": cut["bytes"][:-200]}])
        with pytest.raises(BrokenImageError, match="train row 2"):
            check_images(data, "image", "train")
        check_images(self.data([cut, {**cut, "bytes": cut["bytes"][:-200]}]), "image", "train")

    def test_values_of_8_bits_in_16(self):
        levels = np.asarray(smooth_picture().convert("L")).astype(np.uint16)
        dark, bright = (encoded(PILImage.fromarray(levels * factor)) for factor in (1, 257))
        with pytest.raises(UsageError, match="train: the images of 16 bits, the first in row 1, are all black"):
            check_images(self.data([encoded(smooth_picture()), *[dark] * 40]), "image", "train")
        check_images(self.data([*[dark] * 30, *[bright] * 30]), "image", "train")

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_numbers_without_a_scale(self, mode):
        numbers = encoded(smooth_picture().convert("L").convert(mode), "TIFF")
        with pytest.raises(BrokenImageError, match=r"test row 1: .* convert it to 8 bits"):
            check_images(self.data([encoded(smooth_picture()), numbers]), "image", "test")

    def test_message_of_a_worker_is_one_line(self):
        wrapped = "Caught BrokenImageError in worker\nTraceback:\n  raise\nsam_hf.errors.BrokenImageError: a.png"
        assert str(BrokenImageError(wrapped)) == "a.png"


class TestColumns:
    def test_plain_columns_become_images(self, tmp_path):
        picture = encoded(PILImage.new("L", (4, 4), 9))
        (tmp_path / "a.png").write_bytes(picture["bytes"])
        for values in ([picture["bytes"]], [picture], [str(tmp_path / "a.png")]):
            data = encoded_images(Dataset.from_dict({"image": values}), "image")
            assert data.features["image"] == Image(decode=False)
            assert decode_image(data[0]["image"]).getpixel((0, 0)) == 9

    def test_numbers_are_no_images(self):
        with pytest.raises(UsageError, match="column image holds Value\\('float64'\\): it must hold encoded images"):
            encoded_images(Dataset.from_dict({"image": [1.5]}), "image")

    @pytest.mark.parametrize(
        "values, feature",
        [
            ([[[0, 255], [255, 0]]], None),
            (np.zeros((1, 2, 2), dtype=np.float32), Array2D((2, 2), "float32")),
            (np.zeros((1, 2, 2, 3), dtype=np.uint8), Array3D((2, 2, 3), "uint8")),
            ([[b"a"]], None),
            ([{"pixels": [1, 2]}], None),
            ([None], None),
            ([[{"bytes": b"a", "path": None}]], List(Image())),
        ],
    )
    def test_arrays_and_lists_are_no_images(self, values, feature):
        features = Features({"image": feature}) if feature else None
        with pytest.raises(UsageError, match=r"column image holds .*: it must hold encoded images") as error:
            encoded_images(Dataset.from_dict({"image": values}, features=features), "image")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("missing", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}])
    def test_missing_images(self, missing):
        data = Dataset.from_dict({"image": [{"bytes": encoded(smooth_picture())["bytes"], "path": "a"}, missing]})
        with pytest.raises(BrokenImageError, match="validation row 1: there is no image"):
            check_images(encoded_images(data, "image"), "image", "validation")

    def test_missing_column_lists_the_others(self):
        with pytest.raises(UsageError, match="no column image: the columns are picture, label"):
            encoded_images(Dataset.from_dict({"picture": [b""], "label": [0]}), "image")

    def test_only_image_column_is_found(self):
        features = Features({"img": Image(), "label": Value("int64")})
        data = Dataset.from_dict({"img": [], "label": []}, features=features)
        assert find_image_column(data, None) == "img"
        assert find_image_column(data, "label") == "label"
        assert find_image_column(data.select_columns(["label"]), None) == "image"

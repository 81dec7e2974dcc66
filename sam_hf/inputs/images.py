"""
Images as inputs of a model: they are checked, decoded, converted to the channels that the model takes, and
transformed by torchvision v2 as the checkpoint's image processor prescribes.

Images stay encoded in the data set. `ImageTransform` decodes them one batch at a time, so that an image that cannot be
decoded is reported by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BrokenImageError, UsageError
from .columns import find_column
from .image_decoding import decode_image, load_picture

if TYPE_CHECKING:
    from datasets import Dataset

    from .image_format import ImageFormat

# Types of columns that can hold file names or the bytes of files
_ENCODED = {"string", "large_string", "binary", "large_binary"}


class ImageTransform:
    """
    Turns a batch of encoded images into the model's inputs: `dataset.with_transform(ImageTransform(...))`.

    Args:
        format (`ImageFormat`): what the model takes.
        image_column (`str`): column of images.
        label_column (`str`, *optional*): column that is returned as `labels`.
        train (`bool`, *optional*, defaults to `False`): crop and flip at random; otherwise resize and crop the centre.
        crop_scale_min (`float`, *optional*, defaults to `0.08`):
            Smallest share of the area that a random crop keeps. With `1` the centre is cropped instead.
        horizontal_flip (`float`, *optional*, defaults to `0.5`): probability of mirroring an image.
    """

    def __init__(
        self,
        format: ImageFormat,
        image_column: str,
        label_column: str | None = None,
        train: bool = False,
        crop_scale_min: float = 0.08,
        horizontal_flip: float = 0.5,
    ):
        import torch
        from torchvision.transforms import InterpolationMode, v2
        from torchvision.transforms.functional import pil_modes_mapping

        modes = {number: mode for mode, number in pil_modes_mapping.items() if isinstance(mode, InterpolationMode)}
        interpolation = modes.get(format.interpolation, InterpolationMode.BILINEAR)
        steps: list[Any]
        if train and crop_scale_min < 1:
            steps = [v2.RandomResizedCrop(format.crop, scale=(crop_scale_min, 1.0), interpolation=interpolation)]
        else:
            steps = [v2.Resize(format.resize, interpolation=interpolation), v2.CenterCrop(format.crop)]
        if train and horizontal_flip > 0:
            steps.append(v2.RandomHorizontalFlip(horizontal_flip))
        self.steps = v2.Compose([*steps, v2.ToImage()])
        # Applied to the whole batch, in which all images have one size: for small images the calls take most time
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=False), v2.Normalize(format.mean, format.std)])
        self.bgr = format.bgr
        self.channels = format.channels
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        import torch

        images = [load_picture(image, self.channels) for image in batch[self.image_column]]
        inputs: dict[str, list] = {"pixel_values": []}
        if images:
            # The stack is a plain tensor. A tv_tensors.Image would keep its type in the model
            pixels = self.normalize(torch.stack([self.steps(image) for image in images]))
            inputs["pixel_values"] = list(pixels.flip(1) if self.bgr else pixels)
        if self.label_column is not None and self.label_column in batch:
            inputs["labels"] = batch[self.label_column]
        return inputs


def encoded_images(dataset: Dataset, column: str) -> Dataset:
    """
    Return `dataset` with `column` as encoded images. The column may be an `Image` feature, the bytes or
    `{bytes, path}` of a plain parquet file, or file names.
    """
    from datasets import Image

    find_column(dataset, None, (column,), option="image_column")
    kind = dataset.features[column]
    try:
        # datasets would make an image of a list of numbers, and lose the meaning of the numbers on the way
        if _holds_images(kind):
            return dataset.cast_column(column, Image(decode=False))
    except Exception as error:  # of Arrow or datasets
        raise UsageError(f"the column {column} cannot be read as images: {' '.join(str(error).split())}") from error
    raise UsageError(f"the column {column} holds {kind}: it must hold encoded images or file names")


def _holds_images(kind: Any) -> bool:
    from datasets import Image

    if isinstance(kind, dict):
        return any(_holds_images(kind[name]) for name in ("bytes", "path") if name in kind)
    return isinstance(kind, Image) or getattr(kind, "dtype", None) in _ENCODED


def check_images(dataset: Dataset, column: str, split: str, decoded: bool = False) -> None:
    """
    Check that every entry of `column` is an image, and raise `BrokenImageError` for the first that is not.

    Args:
        dataset (`Dataset`): as `encoded_images` returns it.
        column (`str`): column of images.
        split (`str`): name of the split, for the message.
        decoded (`bool`, *optional*, defaults to `False`):
            Decode every image completely, which finds truncated files. Otherwise the header of each image is read,
            and the first image of each kind is decoded: Pillow may lack what that kind needs.
    """
    images = dataset.with_format(None).select_columns([column])
    known, sixteen_bit = set(), []
    for row, example in enumerate(images):
        try:
            header = decode_image(example[column], headers_only=True)
            kind = (header.format, header.mode)
            if decoded or kind not in known:
                load_picture(example[column], channels=3)
        except BrokenImageError as error:
            raise BrokenImageError(f"{split} row {row}: {error}") from error
        known.add(kind)
        if header.mode.startswith("I"):
            sixteen_bit.append(row)
    if not decoded:
        _check_not_black(images, column, split, sixteen_bit)


def _check_not_black(images: Dataset, column: str, split: str, rows: Sequence[int]) -> None:
    """Refuse images of 16 bits that hold values of 8 bits. A sample is enough: these would all be black."""
    sample = rows[:: max(1, len(rows) // 16)]
    try:
        are_black = [load_picture(images[row][column], channels=1).getextrema() == (0, 0) for row in sample]
    except BrokenImageError:
        return  # this is reported where the image is used
    if sample and all(are_black):
        raise UsageError(
            f"{split}: the images of 16 bits, the first in row {rows[0]}, are all black, since their values are below "
            "256 of 65536: convert them to 8 bits"
        )


def find_image_column(dataset: Dataset, given: str | None) -> str:
    """Return `given`, by default the column of images if the data set has exactly one, and `image` otherwise."""
    from datasets import Image

    images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    return given or (images[0] if len(images) == 1 else "image")

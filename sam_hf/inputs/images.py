"""
Images as inputs of a model: they are checked, decoded, converted to the channels that the model takes, and
transformed by torchvision v2 as the checkpoint's image processor prescribes.

Images stay encoded in the data set. `ImageTransform` decodes them one batch at a time, so that an image that cannot be
decoded is reported by name.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from ..errors import BrokenImageError, UsageError
from .image_format import COLOUR_MODES, ImageFormat
from .labels import find_column

if TYPE_CHECKING:
    from datasets import Dataset

# PIL raises more than OSError for damaged files: its PNG plugin a SyntaxError, TIFF a ValueError or TypeError, ...
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, PILImage.DecompressionBombError)


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

        images = [convert_channels(decode_image(image), self.channels) for image in batch[self.image_column]]
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

    find_column(dataset, column)
    try:
        return dataset.cast_column(column, Image(decode=False))
    except Exception as error:  # of Arrow, datasets or Python, depending on the type of the column
        kind = dataset.features[column]
        raise UsageError(f"the column {column} holds {kind}: it must hold encoded images or file names") from error


def check_images(dataset: Dataset, column: str, split: str, decoded: bool = False) -> None:
    """
    Check that every entry of `column` is an image, and raise `BrokenImageError` for the first that is not.

    Args:
        dataset (`Dataset`): as `encoded_images` returns it.
        column (`str`): column of images.
        split (`str`): name of the split, for the message.
        decoded (`bool`, *optional*, defaults to `False`):
            Decode every image completely, which finds truncated files. Otherwise only headers are read.
    """
    for row, example in enumerate(dataset.with_format(None).select_columns([column])):
        try:
            decode_image(example[column], headers_only=not decoded)
        except BrokenImageError as error:
            raise BrokenImageError(f"{split} row {row}: {error}") from error


def decode_image(image: dict[str, Any] | None, headers_only: bool = False) -> PILImage.Image:
    """Return the picture in `{"bytes": ..., "path": ...}`, turned upright if its EXIF data hold an orientation."""
    from PIL import ImageOps

    if image is None:
        raise BrokenImageError("there is no image")
    content, path = image.get("bytes"), image.get("path")
    name = path or "an image without a file name"
    if content is None and not (path and Path(path).is_file()):
        raise BrokenImageError(f"{name} does not exist")
    try:
        source: Any = io.BytesIO(content) if content is not None else path
        picture = PILImage.open(source)
        if headers_only:
            picture.close()
            return picture
        picture.load()
        return ImageOps.exif_transpose(picture)
    except _DECODING_ERRORS as error:
        raise BrokenImageError(f"{name} cannot be read as an image ({_one_line(error)})") from error


def convert_channels(picture: PILImage.Image, channels: int) -> PILImage.Image:
    """Convert `picture` to grey (1) or colour (3). Transparency is dropped, as by `load_image` of transformers."""
    if picture.mode.startswith("I"):
        # 16-bit grey: PIL would convert all values above 255 to white
        values = np.asarray(picture)
        picture = PILImage.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert(COLOUR_MODES[channels])


def check_image_folder(folder: str, needs_classes: bool = True) -> None:
    """
    Check that `folder` has class folders and that each of them has an image, and raise `UsageError` otherwise.

    Args:
        folder (`str`): the folder that holds one folder per class.
        needs_classes (`bool`, *optional*, defaults to `True`): if `False`, `folder` itself may hold the images.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"the folder {folder} does not exist")
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes and needs_classes:
        raise UsageError(f"the folder {folder} has no class folders: it must hold one folder of images per class")
    extensions = PILImage.registered_extensions()
    for entry in classes or [path]:
        if not any(file.suffix.lower() in extensions for file in entry.rglob("*")):
            raise UsageError(f"the {'class ' if classes else ''}folder {entry} has no image")


def find_image_column(dataset: Dataset, given: str | None) -> str:
    """Return `given`, by default the column of images if the data set has exactly one, and `image` otherwise."""
    from datasets import Image

    images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    return given or (images[0] if len(images) == 1 else "image")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

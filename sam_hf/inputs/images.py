"""
Images on their way into a model: checked, decoded, brought to the channels the model takes, and transformed by
torchvision v2 as the checkpoint's image processor prescribes.

Images stay encoded in the data set and are decoded one batch at a time, by `ImageTransform`, so that an image that
cannot be decoded is reported by name.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from ..errors import BrokenImageError, UsageError
from .image_format import COLOUR_MODES, ImageFormat

if TYPE_CHECKING:
    from datasets import Dataset

# PIL's plugins raise more than OSError on damaged input: PNG a SyntaxError, TIFF a ValueError or TypeError, and so on
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, PILImage.DecompressionBombError)


class ImageTransform:
    """
    A batch of encoded images as the model's inputs: `dataset.with_transform(ImageTransform(...))`.

    Args:
        format (`ImageFormat`): what the model takes.
        image_column (`str`): column with the images.
        label_column (`str`, *optional*): column handed on as `labels`.
        train (`bool`, *optional*, defaults to `False`):
            Random crop and flip; otherwise resize and centre crop.
        crop_scale_min (`float`, *optional*, defaults to `0.08`):
            Smallest share of the area that a random crop keeps. `1` takes the centre crop instead.
        horizontal_flip (`float`, *optional*, defaults to `0.5`):
            Probability of mirroring an image.
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
        # On the whole batch, since all images have one size by now: small ones cost calls more than arithmetic
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=False), v2.Normalize(format.mean, format.std)])
        self.bgr = format.bgr
        self.channels = format.channels
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        import torch

        images = [with_channels(decode(image), self.channels) for image in batch[self.image_column]]
        inputs: dict[str, list] = {"pixel_values": []}
        if images:
            # Stacked, they are a plain tensor and no longer a tv_tensors.Image, a type that would go into the model
            pixels = self.normalize(torch.stack([self.steps(image) for image in images]))
            inputs["pixel_values"] = list(pixels.flip(1) if self.bgr else pixels)
        if self.label_column is not None and self.label_column in batch:
            inputs["labels"] = batch[self.label_column]
        return inputs


def encoded_images(dataset: Dataset, column: str) -> Dataset:
    """
    `dataset` with `column` as encoded images: an `Image` feature, the bytes or `{bytes, path}` of a plain parquet
    file, or file names.
    """
    from datasets import Image

    if column not in dataset.column_names:
        raise UsageError(f"there is no image column {column!r}: the columns are {', '.join(dataset.column_names)}")
    try:
        return dataset.cast_column(column, Image(decode=False))
    except Exception as error:  # Arrow's, datasets' and Python's own errors, by the type that was found
        kind = dataset.features[column]
        raise UsageError(
            f"the column {column!r} holds {kind}, no images: it must hold encoded images or file names"
        ) from error


def check_images(dataset: Dataset, column: str, split: str, decoded: bool = False) -> None:
    """
    Raise `BrokenImageError` for the first image of `column` that is missing or is no image.

    Args:
        dataset (`Dataset`): as `encoded_images` returns it.
        column (`str`): column with the images.
        split (`str`): its name, for the message.
        decoded (`bool`, *optional*, defaults to `False`):
            Decode every image in full, which finds a file cut short. Otherwise only headers are read.
    """
    images = dataset.with_format(None).select_columns([column])
    row = 0
    for batch in images.iter(batch_size=64):
        for image in batch[column]:
            try:
                decode(image, headers_only=not decoded)
            except BrokenImageError as error:
                raise BrokenImageError(f"{split} row {row}: {error}") from error
            row += 1


def decode(image: dict[str, Any] | None, headers_only: bool = False) -> PILImage.Image:
    """The picture in `{"bytes": ..., "path": ...}`, turned upright where its EXIF data say how it was taken."""
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


def with_channels(picture: PILImage.Image, channels: int) -> PILImage.Image:
    """`picture` in grey (1) or colour (3). Transparency is dropped, as transformers' own `load_image` does."""
    if picture.mode.startswith("I"):
        # 16-bit grey: PIL's own conversion would clip it to white above 255
        values = np.asarray(picture)
        picture = PILImage.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert(COLOUR_MODES[channels])


def check_image_folder(folder: str, needs_classes: bool = True) -> None:
    """
    Raise `UsageError` where `folder` has no class folders or one of them has no image.

    Args:
        folder (`str`): folder of one folder a class.
        needs_classes (`bool`, *optional*, defaults to `True`): `False`: the images may also stand in `folder` itself.
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
    """The column named, else the only one that is known to hold images, else `image`."""
    from datasets import Image

    known = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    return given or (known[0] if len(known) == 1 else "image")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""
Images on their way into a model: checked, decoded, brought to the channels the model takes, and transformed by
torchvision v2 as the checkpoint's image processor prescribes.

Images stay encoded in the data set and are decoded one batch at a time, by `ImageTransform`, so that an image that
cannot be decoded is reported by name.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from .cli import UsageError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig

# PIL's plugins raise more than OSError on damaged input: PNG a SyntaxError, TIFF a ValueError or TypeError, and so on
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, PILImage.DecompressionBombError)

_COLOUR_MODES = {1: "L", 3: "RGB"}


class BrokenImageError(UsageError):
    """An image that cannot be decoded."""


@dataclass(frozen=True)
class ImageFormat:
    """
    What a model takes, read from its image processor and configuration.

    Args:
        crop (`tuple[int, int]`): height and width of the model's input.
        resize (`int` or `tuple[int, int]`):
            Size before the crop: of the shorter edge, keeping the proportions, or exact height and width.
        channels (`int`): 1 or 3.
        interpolation (`int`): a PIL resampling filter.
        mean (`tuple[float, ...]`): subtracted, in units of the 0 to 255 of a byte.
        std (`tuple[float, ...]`): divided by afterwards, in the same units.
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int]
    channels: int
    interpolation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any, config: PreTrainedConfig, image_size: int | None = None) -> ImageFormat:
        """
        Args:
            processor: the checkpoint's image processor, a TimmWrapperImageProcessor included.
            config (`PreTrainedConfig`): the model's configuration, for channels and a size the processor leaves open.
            image_size (`int`, *optional*): a square input of this size instead of the checkpoint's own.
        """
        timm_config = getattr(processor, "data_config", None)
        if timm_config is not None:
            channels = timm_config["input_size"][0]
            crop, resize = _timm_sizes(timm_config)
            interpolation = _timm_interpolation(timm_config["interpolation"])
            mean, std = timm_config["mean"], timm_config["std"]
            factor, offset = 1 / 255, 0.0
        else:
            channels = getattr(config, "num_channels", 3)
            crop, resize = _processor_sizes(processor, config)
            interpolation = int(getattr(processor, "resample", None) or PILImage.Resampling.BILINEAR)
            normalised = getattr(processor, "do_normalize", True)
            mean, std = (processor.image_mean, processor.image_std) if normalised else (0.0, 1.0)
            factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
            offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
        if channels not in _COLOUR_MODES:
            raise UsageError(f"the checkpoint takes images of {channels} channels; this program feeds 1 or 3")
        if image_size is not None:
            crop, resize = _scaled_to(image_size, crop, resize)
        return cls(
            crop=crop,
            resize=resize,
            channels=channels,
            interpolation=interpolation,
            # (x · factor - offset - mean) / std as one step on bytes
            mean=tuple((m + offset) / factor for m in _per_channel(mean, channels)),
            std=tuple(s / factor for s in _per_channel(std, channels)),
        )


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
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=False), v2.Normalize(format.mean, format.std)]
        self.steps = v2.Compose(steps)
        self.channels = format.channels
        self.image_column = image_column
        self.label_column = label_column

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        images = [with_channels(decode(image), self.channels) for image in batch[self.image_column]]
        # as_subclass: a tv_tensors.Image would carry its type through collation into the model
        inputs = {"pixel_values": [_plain_tensor(self.steps(image)) for image in images]}
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
    return picture.convert(_COLOUR_MODES[channels])


def check_class_folders(folder: str) -> None:
    """Raise `UsageError` where `folder` has no class folders or one of them has no image."""
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"the folder {folder} does not exist")
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(f"the folder {folder} has no class folders: it must hold one folder of images per class")
    extensions = PILImage.registered_extensions()
    for entry in classes:
        if not any(file.suffix.lower() in extensions for file in entry.rglob("*")):
            raise UsageError(f"the class folder {entry} has no image")


def _timm_sizes(config: dict[str, Any]) -> tuple[tuple[int, int], int | tuple[int, int]]:
    height, width = config["input_size"][-2:]
    larger = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
    keep_proportions = config.get("crop_mode", "center") != "squash" and height == width
    return (height, width), larger[0] if keep_proportions else larger


def _timm_interpolation(name: str) -> int:
    # "random" is timm's training augmentation; its own evaluation falls back to bicubic as well
    return int(getattr(PILImage.Resampling, name.upper(), PILImage.Resampling.BICUBIC))


def _processor_sizes(processor: Any, config: PreTrainedConfig) -> Any:
    size = getattr(processor, "size", None) or {}
    exact = _height_and_width(size)
    shortest = size.get("shortest_edge")
    if exact is None and shortest is None:
        exact = _height_and_width(getattr(config, "image_size", None)) or (224, 224)
    crop = _height_and_width(getattr(processor, "crop_size", None)) if processor.do_center_crop else None
    crop_pct = getattr(processor, "crop_pct", None)
    if crop_pct and shortest and crop is None:
        # ConvNeXT's rule: crop below 384, warp from there on
        return (shortest, shortest), int(shortest / crop_pct) if shortest < 384 else (shortest, shortest)
    if not getattr(processor, "do_resize", True) and crop is not None:
        return crop, min(crop)
    return crop or exact or (shortest, shortest), exact or shortest


def _height_and_width(size: Any) -> tuple[int, int] | None:
    """A size in any of the ways configurations write it, or `None` where it does not fix both edges."""
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, (list, tuple)):
        return (size[0], size[-1])
    if size.get("height") and size.get("width"):
        return (size["height"], size["width"])
    return None


def _scaled_to(
    image_size: int, crop: tuple[int, int], resize: int | tuple[int, int]
) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """Crop and resize for a square input, in the proportion that the checkpoint's own have."""
    if isinstance(resize, int):
        return (image_size, image_size), round(image_size * resize / min(crop))
    height, width = (round(image_size * edge / cropped) for edge, cropped in zip(resize, crop, strict=True))
    return (image_size, image_size), (height, width)


def _per_channel(values: Any, channels: int) -> list[float]:
    values = [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
    if len(values) == channels:
        return values
    return [sum(values) / len(values)] * channels  # a colour processor before a grey model, or one value for all


def _plain_tensor(image: Any) -> Any:
    import torch

    return image.as_subclass(torch.Tensor)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

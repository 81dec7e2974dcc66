"""The format of the images that a model takes. It is read from the image processor; a changed size is written back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage

from ..errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

COLOUR_MODES = {1: "L", 3: "RGB"}
Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class ImageFormat:
    """
    The format of the images that a model takes.

    Args:
        crop (`tuple[int, int]`): height and width of the model's input.
        resize (`int` or `tuple[int, int]`):
            Size before the crop: of the shorter edge, with the proportions kept, or the exact height and width.
        channels (`int`): 1 or 3.
        interpolation (`int`): a PIL resampling filter.
        mean (`tuple[float, ...]`): what is subtracted from the bytes, which are from 0 to 255.
        std (`tuple[float, ...]`): what the difference is divided by, in the same units.
        bgr (`bool`, *optional*, defaults to `False`): the first channel is blue, not red.
    """

    crop: Size
    resize: int | Size
    channels: int
    interpolation: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def __post_init__(self):
        if self.channels not in COLOUR_MODES:
            raise UsageError(f"the checkpoint takes images of {self.channels} channels: only 1 and 3 are supported")

    @classmethod
    def of(cls, processor: Any, config: PreTrainedConfig, image_size: int | None = None) -> ImageFormat:
        """
        Return the format for a checkpoint.

        Args:
            processor: the checkpoint's image processor; it may be a TimmWrapperImageProcessor.
            config (`PreTrainedConfig`): the model's configuration, for channels and a size that the processor lacks.
            image_size (`int`, *optional*): height and width of the input, instead of the checkpoint's size.
        """
        if _is_timm(processor):
            return cls._of_timm(processor.data_config, config, image_size)
        channels = getattr(config, "num_channels", 3)
        crop, resize = _processor_sizes(processor, config, image_size)
        normalised = getattr(processor, "do_normalize", True)
        mean, std = (processor.image_mean, processor.image_std) if normalised else (0.0, 1.0)
        mean, std = _per_channel(mean, channels), _per_channel(std, channels)
        factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
        offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
        if getattr(processor, "include_top", False):  # EfficientNet divides by the deviation twice
            std = [s * s for s in std]
        return cls(
            crop=crop,
            resize=resize,
            channels=channels,
            interpolation=int(getattr(processor, "resample", None) or PILImage.Resampling.BILINEAR),
            # (x · factor - offset - mean) / std, as a single step on bytes
            mean=tuple((m + offset) / factor for m in mean),
            std=tuple(s / factor for s in std),
            bgr=channels == 3 and bool(getattr(processor, "do_flip_channel_order", False)),
        )

    @classmethod
    def _of_timm(cls, settings: dict[str, Any], config: PreTrainedConfig, image_size: int | None) -> ImageFormat:
        channels = (getattr(config, "model_args", None) or {}).get("in_chans", settings["input_size"][0])
        if image_size is not None:
            settings = {**settings, "input_size": [channels, image_size, image_size]}
        crop, resize = _timm_sizes(settings)
        # "random" is timm's augmentation in training; timm's evaluation uses bicubic in its place too
        filters = PILImage.Resampling
        return cls(
            crop=crop,
            resize=resize,
            channels=channels,
            interpolation=int(getattr(filters, settings["interpolation"].upper(), filters.BICUBIC)),
            mean=tuple(255 * m for m in _per_channel(settings["mean"], channels)),
            std=tuple(255 * s for s in _per_channel(settings["std"], channels)),
        )

    def write_to(self, processor: Any, config: Any) -> None:
        """Write the sizes into what is saved with the model, so that it is later used at the size of this training."""
        if _is_timm(processor):  # saved as part of the configuration
            config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [self.channels, *self.crop]}
            return
        crop_pct, cropped = getattr(processor, "crop_pct", None), getattr(processor, "do_center_crop", False)
        if crop_pct and "shortest_edge" in processor.size:  # the processor resizes to this edge divided by crop_pct
            edge = min(self.crop)
            if cropped and isinstance(self.resize, int):
                edge = math.ceil(self.resize * crop_pct - 1e-6)  # the processor rounds down and gets `resize` again
            processor.size = {"shortest_edge": edge}
        elif isinstance(self.resize, int):
            processor.size = {"shortest_edge": self.resize}
        else:
            processor.size = {"height": self.resize[0], "width": self.resize[1]}
        if cropped:
            processor.crop_size = {"height": self.crop[0], "width": self.crop[1]}


def _is_timm(processor: Any) -> bool:
    return getattr(processor, "data_config", None) is not None


def _timm_sizes(settings: dict[str, Any]) -> tuple[Size, int | Size]:
    """Return crop and resize as timm's configuration describes them."""
    height, width = settings["input_size"][-2:]
    larger = (int(height / settings["crop_pct"]), int(width / settings["crop_pct"]))
    keep_proportions = settings.get("crop_mode", "center") != "squash" and height == width
    return (height, width), larger[0] if keep_proportions else larger


def _processor_sizes(processor: Any, config: PreTrainedConfig, image_size: int | None) -> tuple[Size, int | Size]:
    """Return crop and resize of an image processor of transformers."""
    size: Any = getattr(processor, "size", None) or {}
    exact = _height_and_width(size)
    shortest: Any = size.get("shortest_edge")
    if exact is None and shortest is None:
        exact = _height_and_width(getattr(config, "image_size", None)) or (224, 224)
    cropped = getattr(processor, "do_center_crop", False)
    crop = _height_and_width(getattr(processor, "crop_size", None)) if cropped else None
    crop_pct = getattr(processor, "crop_pct", None)
    if crop_pct and shortest:
        target = crop or (shortest, shortest)
        edge = shortest if image_size is None else round(image_size * shortest / min(target))
        target = target if image_size is None else (image_size, image_size)
        # ConvNeXT, which has no crop size, crops if the edge is below 384 and warps otherwise. PoolFormer always crops
        return target, target if crop is None and edge >= 384 else int(edge / crop_pct)
    if not getattr(processor, "do_resize", True) and crop is not None:
        return _scaled_to(image_size, crop, min(crop))
    return _scaled_to(image_size, crop or exact or (shortest, shortest), exact or shortest)


def _height_and_width(size: Any) -> Size | None:
    """Read a size in any form that configurations use. Return `None` if it does not fix both edges."""
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, (list, tuple)):
        return (size[0], size[-1])
    if size.get("height") and size.get("width"):
        return (size["height"], size["width"])
    return None


def _scaled_to(image_size: int | None, crop: Size, resize: int | Size) -> tuple[Size, int | Size]:
    """Return crop and resize for a square input, in the same proportion to each other as those of the checkpoint."""
    if image_size is None:
        return crop, resize
    if isinstance(resize, int):
        return (image_size, image_size), round(image_size * resize / min(crop))
    height, width = (round(image_size * edge / cropped) for edge, cropped in zip(resize, crop, strict=True))
    return (image_size, image_size), (height, width)


def _per_channel(values: Any, channels: int) -> list[float]:
    values = [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
    if len(values) == channels:
        return values
    return [sum(values) / len(values)] * channels  # one value for all channels, or a colour processor and a grey model

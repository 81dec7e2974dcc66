"""
Decoding of images to upright pictures of 8 bits per channel. Whatever is wrong with a file, it is a `BrokenImageError`
that names the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from ..errors import BrokenImageError
from .image_format import COLOUR_MODES

_ORIENTATION = 0x0112  # the tag of EXIF
_UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
# Pillow reads 16 bits of these as 32: always those of PPM, and in older releases those of PNG
_SIXTEEN_BITS_IN_32 = {"PNG", "PPM"}


def load_picture(image: dict[str, Any] | None, channels: int) -> PILImage.Image:
    """Return the picture in `{"bytes": ..., "path": ...}`, upright, in grey (`channels=1`) or in colour (3)."""
    picture = decode_image(image)
    with _broken_if_it_fails(_name(image)):
        return convert_channels(picture, channels)


def decode_image(image: dict[str, Any] | None, headers_only: bool = False) -> PILImage.Image:
    """
    Return the picture in `{"bytes": ..., "path": ...}`, turned upright if its EXIF data hold an orientation.

    Args:
        image (`dict` or `None`): an encoded image; the bytes count if both are there.
        headers_only (`bool`, *optional*, defaults to `False`): read no pixels, and return the picture without them.
    """
    content, path = (None, None) if image is None else (image.get("bytes"), image.get("path"))
    if content is None and not path:
        raise BrokenImageError("there is no image")
    name = _name(image)
    if content is None and not Path(str(path)).is_file():
        raise BrokenImageError(f"{name} does not exist")
    source: Any = path if content is None else io.BytesIO(content)
    with _broken_if_it_fails(name), PILImage.open(source) as picture:
        _check_kind(picture, name)
        if headers_only:
            return picture
        picture.load()
        turn, levels = _turn(picture), _eight_bits(picture)
        return levels if turn is None else levels.transpose(turn)


def convert_channels(picture: PILImage.Image, channels: int) -> PILImage.Image:
    """Convert `picture` to grey (1) or colour (3). Transparency is dropped, as by `load_image` of transformers."""
    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode == "LAB":  # which Pillow converts to colour alone
        picture = picture.convert("RGB")
    return picture.convert(COLOUR_MODES[channels])


@contextmanager
def _broken_if_it_fails(name: str) -> Iterator[None]:
    """Raise a `BrokenImageError` for any error: the plugins of Pillow let errors of every type through."""
    try:
        yield
    except BrokenImageError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImageError(f"{name} cannot be read as an image ({why})") from error


def _name(image: dict[str, Any] | None) -> str:
    return (image or {}).get("path") or "an image without a file name"


def _check_kind(picture: PILImage.Image, name: str) -> None:
    if 0 in picture.size:
        raise BrokenImageError(f"{name} is an image without pixels")
    if picture.mode == "F" or (picture.mode == "I" and picture.format not in _SIXTEEN_BITS_IN_32):
        kind = "floating-point numbers" if picture.mode == "F" else "32-bit integers"
        raise BrokenImageError(
            f"{name} is an image of {kind}, which do not say what is black and what is white: convert it to 8 bits"
        )


def _turn(picture: PILImage.Image) -> PILImage.Transpose | None:
    """Return what turns the picture upright, as its EXIF or XMP data say; `None` if they do not, or are unreadable."""
    try:
        # Only this one field is read. ImageOps.exif_transpose writes all of them again, and fails at one odd field
        return _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # of any type
        return None


def _eight_bits(picture: PILImage.Image) -> PILImage.Image:
    """Return 16-bit grey with 8 bits. Pillow would convert all values above 255 to white."""
    if not picture.mode.startswith("I"):
        return picture
    tags = getattr(picture, "tag_v2", {})
    bits = 12 if tags.get(_TIFF_BITS) == (12,) else 16
    levels = (np.asarray(picture).clip(0, 65535) >> (bits - 8)).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is zero, which Pillow regards with up to 8 bits alone
        levels = 255 - levels
    return PILImage.fromarray(levels)

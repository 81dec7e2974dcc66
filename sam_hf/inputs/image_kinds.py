"""What a file in a folder of images is: known by its name, and by its first bytes where the name does not tell."""

from __future__ import annotations

import os
import re
from functools import cache

from PIL import Image as PILImage

from ..errors import UsageError

METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # of imagefolder in datasets
# What systems and programs leave in folders, in lower case. Nobody means these as a class or as an image
_LEFTOVERS = {
    *("@eadir", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "system volume information", "lost+found"),
    *(".git", ".cache", ".huggingface", ".ipynb_checkpoints", ".trashes", ".spotlight-v100", ".fseventsd"),
    *("thumbs.db", "desktop.ini"),
}
# Images that Pillow, or an old or small build of it, cannot read. Among them are the raw formats of cameras
_UNREADABLE = set(
    ".heic .heif .hif .avif .webp .jxl .jp2 .jxr .svg .svgz .dcm .dicom .xcf .psb .djvu .exr .hdr "
    ".raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw".split()
)
# Pillow finds no pixels in these
_WITHOUT_PIXELS = {"BUFR", "GRIB", "HDF5", "MPEG"}
_FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\x00|MM\x00\*|BM.{4}\x00{4}|....ftyp(avi|hei|mif)",
    re.DOTALL,
)


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_leftover(name: str) -> bool:
    """Return whether a file or folder is one that a system or a program made for itself."""
    return name.lower() in _LEFTOVERS or name.startswith("._")  # macOS writes a file ._NAME beside NAME


def is_readable(name: str) -> bool:
    """Return whether a file has the ending of an image that Pillow reads."""
    return ending(name) in _readable_endings()


def is_unreadable(name: str) -> bool:
    """Return whether a file has the ending of an image that Pillow does not read."""
    return ending(name) in _UNREADABLE and not is_readable(name)


def begins_like_image(path: str) -> bool:
    """Return whether a file begins with the bytes of a usual kind of image."""
    try:
        with open(path, "rb") as file:
            return _FIRST_BYTES.match(file.read(16)) is not None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


@cache
def _readable_endings() -> frozenset[str]:
    formats = PILImage.registered_extensions()
    readable = {*PILImage.OPEN, "MPO"} - _WITHOUT_PIXELS  # the plugin of JPEG opens MPO
    return frozenset(ending for ending, kind in formats.items() if kind in readable)

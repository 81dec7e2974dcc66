"""Damaged images from the file to the model's input: each is used, or refused by name, whatever its bytes are."""

from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from PIL import ExifTags
from PIL import Image as PILImage
from transformers import ViTImageProcessor

from sam_hf.errors import BrokenImageError
from sam_hf.inputs.image_folders import load_image_folder
from sam_hf.inputs.image_format import ImageFormat
from sam_hf.inputs.images import ImageTransform, check_images, encoded_images

FORMAT = ImageFormat.of(ViTImageProcessor(size={"height": 16, "width": 16}), SimpleNamespace(num_channels=3))
MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "L", "P", "RGBA", "LA", "I;16", "1"],
    "TIFF": ["RGB", "L", "P", "CMYK", "RGBA", "LAB", "I;16", "I", "F", "1"],
    "GIF": ["RGB", "L", "P"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["RGB", "L", "P", "1"],
}
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def sound_image(generator: np.random.Generator, kind: str) -> bytes:
    """Return a small image with noise in it, most often with EXIF data."""
    mode = str(generator.choice(MODES[kind]))
    height, width = generator.integers(8, 40, size=2)
    if mode == "I;16":
        picture = PILImage.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16))
    else:
        picture = PILImage.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        picture = picture.convert("L").convert(mode) if mode in "IF" else picture.convert(mode)
    options: dict = {}
    if kind not in ("GIF", "BMP") and generator.random() < 0.8:
        options["exif"] = exif_data(int(generator.integers(2, 9)))
    if kind == "TIFF":
        options["compression"] = [None, "tiff_lzw", "tiff_deflate", "packbits"][generator.integers(4)]
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif_data(orientation: int) -> PILImage.Exif:
    """Return EXIF data with fields of many types, of a camera that knows where it is."""
    tags, exif = ExifTags.Base, PILImage.Exif()
    exif[tags.Orientation] = orientation
    exif[tags.Make], exif[tags.DateTime], exif[tags.Copyright] = "a camera", "2020:01:01 00:00:00", "nobody"
    exif[tags.XResolution], exif[tags.ResolutionUnit], exif[tags.PrimaryChromaticities] = 72.5, 2, (0.3, 0.2, 0.1)
    photo = {tags.ExposureTime: 0.01, tags.ISOSpeedRatings: (100, 200), tags.UserComment: b"none", tags.FNumber: 2.8}
    exif.get_ifd(ExifTags.IFD.Exif).update(photo)
    place = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.5)}
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(place)
    return exif


def damaged(generator: np.random.Generator, content: bytes) -> bytes:
    """Cut an image short, or change up to three bytes of its EXIF data, of its header, or anywhere."""
    where = generator.choice(["cut", "header", "anywhere", "exif", "exif", "exif"])
    if where == "cut":
        return content[: generator.integers(1, len(content))]
    exif = max(0, content.find(b"Exif"), content.find(b"eXIf"))
    start, end = {"exif": (exif, exif + 130), "header": (0, 100), "anywhere": (0, len(content))}[where]
    changed = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        changed[generator.integers(start, min(end, len(changed)))] = generator.integers(256)
    return with_checksums(bytes(changed)) if changed.startswith(SIGNATURE) else bytes(changed)


def with_checksums(png: bytes) -> bytes:
    """Return a PNG with right checksums, without which nothing behind the first change would be read."""
    out, at = bytearray(png), len(SIGNATURE)
    while at + 12 <= len(png):
        end = at + 8 + struct.unpack(">I", png[at : at + 4])[0]
        if end + 4 > len(png):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(png[at + 4 : end]))
        at = end + 4
    return bytes(out)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it finds in the files
@pytest.mark.parametrize("seeds", [range(900, 996), pytest.param(range(2000), marks=pytest.mark.slow)], ids=len)
def test_damaged_images_are_used_or_refused(seeds, tmp_path):
    transforms = [ImageTransform(FORMAT, "image", "label", train=train) for train in (False, True)]
    used = {kind: [0, 0] for kind in MODES}
    for seed in seeds:
        generator = np.random.default_rng(seed)
        kind = list(MODES)[seed % len(MODES)]
        content = damaged(generator, sound_image(generator, kind))
        if seed % 2:
            data = Dataset.from_dict({"image": [content], "label": [0]})
        else:
            (tmp_path / f"{seed}" / "cat").mkdir(parents=True)
            (tmp_path / f"{seed}" / "cat" / f"a.{kind.lower()}").write_bytes(content)
            data = load_image_folder(str(tmp_path / f"{seed}"))
        try:
            data = encoded_images(data, "image")
            check_images(data, "image", "train")
        except BrokenImageError as error:
            assert str(error).startswith("train row 0: ") and "\n" not in str(error)
            assert seed % 2 or str(tmp_path) in str(error)
        # What no check has found shows in training
        try:
            (example,) = data.with_transform(transforms[seed // 2 % 2])[:]["pixel_values"]
            assert example.shape == (3, 16, 16) and example.isfinite().all()
            used[kind][0] += 1
        except BrokenImageError as error:
            assert "\n" not in str(error)
            used[kind][1] += 1
    assert all(min(counts) > 0 for counts in used.values()), used


def test_the_images_are_sound_before_the_damage():
    transform = ImageTransform(FORMAT, "image")
    for seed in range(60):
        kind = list(MODES)[seed % len(MODES)]
        content = sound_image(np.random.default_rng(seed), kind)
        try:
            transform({"image": [{"bytes": content, "path": None}]})
        except BrokenImageError as error:
            assert kind == "TIFF" and "convert it to 8 bits" in str(error)

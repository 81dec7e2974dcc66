"""Tests of decoding: which way is up, what each kind of picture becomes, and which kinds are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, ImageOps
from PIL import Image as PILImage

from sam_hf.errors import BrokenImageError
from sam_hf.inputs.image_decoding import convert_channels, decode_image, load_picture

LEVELS = np.tile(np.array([0, 64, 128, 255], dtype=np.uint8), (4, 1))
CORNER = PILImage.fromarray(np.array([[255, 0, 0], [0, 0, 0]], dtype=np.uint8)).resize((24, 16), 0).convert("RGB")


def encoded(picture: PILImage.Image, kind: str = "PNG", **options) -> dict:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def sixteen_bit(values: list[int]) -> PILImage.Image:
    return PILImage.fromarray(np.array([values], dtype=np.uint16))


TRANSPARENT = PILImage.new("P", (2, 1))
TRANSPARENT.putpalette([10, 20, 30, 40, 50, 60])
TRANSPARENT.info["transparency"] = b"\x00\xff"

MODES = {
    "grey": (PILImage.fromarray(np.array([[7, 9]], dtype=np.uint8)), [[7] * 3, [9] * 3]),
    "grey, 16 bit": (sixteen_bit([256, 65535]), [[1] * 3, [255] * 3]),
    "black and white": (PILImage.fromarray(np.array([[True, False]])), [[255] * 3, [0] * 3]),
    "palette": (
        PILImage.new("RGB", (2, 1), (9, 8, 7)).convert("P", palette=PILImage.Palette.ADAPTIVE),
        [[9, 8, 7]] * 2,
    ),
    "colour with transparency": (PILImage.new("RGBA", (2, 1), (9, 8, 7, 0)), [[9, 8, 7]] * 2),
    "colour": (PILImage.new("RGB", (2, 1), (9, 8, 7)), [[9, 8, 7]] * 2),
}


@pytest.mark.parametrize("picture, expected", MODES.values(), ids=MODES)
def test_every_mode_becomes_colour(picture, expected):
    converted = load_picture(encoded(picture), 3)
    assert converted.mode == "RGB"
    assert np.asarray(converted)[0].tolist() == expected
    assert load_picture(encoded(picture), 1).mode == "L"


def test_palette_with_transparency_gives_no_warning(recwarn):
    first, second = np.asarray(convert_channels(TRANSPARENT, 3))[0].tolist()
    assert first == second == [10, 20, 30]
    assert not recwarn.list


def in_mode(mode: str) -> PILImage.Image:
    """Return the grey levels 0, 64, 128 and 255 in a mode of Pillow."""
    if mode.startswith("I;16"):
        return PILImage.fromarray((LEVELS.astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "<u2"))
    if mode == "PA":
        return PILImage.fromarray(LEVELS).convert("LA").convert("PA")
    return PILImage.fromarray(LEVELS).convert("RGB" if mode == "LAB" else "L").convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "kind, modes",
    {
        "TIFF": "L LA P PA RGB RGBA CMYK LAB I;16 I;16B",
        "PNG": "L LA P RGB RGBA I;16",
        "PPM": "L RGB I;16",
        "IM": "L LA RGB CMYK YCbCr I;16B",
        "BMP": "L P RGB RGBA",
        "GIF": "L P RGB",
        "TGA": "L LA RGB RGBA",
    }.items(),
)
def test_grey_levels_survive_every_kind_of_file(kind, modes, channels):
    for mode in modes.split():
        picture = load_picture(encoded(in_mode(mode), kind), channels)
        levels = np.asarray(picture).reshape(4, 4, channels)[0].mean(-1)
        assert levels.tolist() == pytest.approx([0, 64, 128, 255], abs=1), f"{mode} in {kind}"


@pytest.mark.parametrize("mode, named", [("F", "floating-point numbers"), ("I", "32-bit integers")])
def test_numbers_without_a_scale_are_refused_by_the_header(mode, named):
    for kind in ["TIFF", *(["PPM"] if mode == "F" else [])]:
        for top in (1, 255, 65535):
            numbers = PILImage.fromarray(LEVELS).convert(mode).point(lambda v, top=top: v * (top / 255) + 0)
            with pytest.raises(BrokenImageError, match=f"an image of {named}.* convert it to 8 bits"):
                decode_image(encoded(numbers, kind), headers_only=True)


def patched(content: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian TIFF with another value in a field of one short number."""
    at = content.index(struct.pack("<HHI", tag, 3, 1))
    return content[: at + 8] + struct.pack("<H", value) + content[at + 10 :]


def test_white_can_be_zero():
    content = encoded(in_mode("I;16"), "TIFF")["bytes"]
    inverted = load_picture({"bytes": patched(content, 262, 0), "path": None}, 1)
    assert np.asarray(inverted)[0].tolist() == [255, 191, 127, 0]


def test_twelve_bits():
    content = encoded(in_mode("I;16"), "TIFF")["bytes"]
    values = (LEVELS[0].astype(int) * 4095 // 255).tolist()
    packed = bytearray()
    for first, second in (values[:2], values[2:]):  # two values in three bytes
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    content = patched(content, 258, 12)
    pixels = (LEVELS.astype(np.uint16) * 257).tobytes()
    assert pixels in content
    twelve = content.replace(pixels, bytes(packed) * 4 + bytes(len(pixels) - 4 * len(packed)))
    assert np.asarray(load_picture({"bytes": twelve, "path": None}, 1))[0].tolist() == [0, 64, 128, 255]


def exif_of(orientation: int) -> PILImage.Exif:
    exif = PILImage.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "a camera"
    return exif


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("where", ["JPEG", "PNG", "TIFF", "WEBP", "XMP in JPEG", "XMP in PNG", "profile in PNG"])
def test_upright_as_pillow_turns_it(where, orientation):
    from PIL.PngImagePlugin import PngInfo

    texts, kind = PngInfo(), where.split()[-1]
    xmp, exif = XMP.format(orientation), exif_of(orientation)
    if where == "XMP in JPEG":
        options = {"xmp": xmp.encode(), "quality": 100}
    elif where == "XMP in PNG":
        texts.add_itxt("XML:com.adobe.xmp", xmp)
        options = {"pnginfo": texts}
    elif where == "profile in PNG":
        profile = exif.tobytes()
        texts.add_text("Raw profile type exif", f"\nexif\n{len(profile):8}\n{profile.hex()}\n")
        options = {"pnginfo": texts}
    else:
        options = {"exif": exif, **({"lossless": True} if kind == "WEBP" else {})}
    image = encoded(CORNER, kind, **options)
    expected = ImageOps.exif_transpose(PILImage.open(io.BytesIO(image["bytes"])))
    assert np.array_equal(np.asarray(load_picture(image, 3)), np.asarray(expected.convert("RGB")))
    assert expected.size == ((16, 24) if 5 <= orientation <= 8 else (24, 16))


def test_sixteen_bits_are_turned_too():
    image = encoded(PILImage.fromarray(np.array([[0, 65535], [0, 0]], dtype=np.uint16)), exif=exif_of(6))
    assert np.asarray(load_picture(image, 1)).tolist() == [[0, 0], [0, 255]]


def test_odd_fields_leave_the_orientation_readable():
    exif = exif_of(6)
    content = encoded(CORNER, "JPEG", exif=exif, quality=100)["bytes"]
    start = content.index(b"Exif\0\0") + 6
    order = "<" if content[start : start + 2] == b"II" else ">"
    make = content.index(struct.pack(f"{order}HH", ExifTags.Base.Make, 2), start)
    expected = np.asarray(load_picture({"bytes": content, "path": None}, 3))
    assert expected.shape[:2] == (24, 16)
    failed = 0
    for kind in range(20):
        for count in (0, 1):
            odd = bytearray(content)
            odd[make + 2 : make + 8] = struct.pack(f"{order}HI", kind, count)
            image = {"bytes": bytes(odd), "path": None}
            try:
                ImageOps.exif_transpose(PILImage.open(io.BytesIO(image["bytes"])))
            except Exception:  # of any type: this is what decoding must not do
                failed += 1
            assert np.array_equal(np.asarray(load_picture(image, 3)), expected)
    assert failed


def test_an_orientation_that_cannot_be_read_is_upright():
    content = encoded(CORNER, "JPEG", exif=exif_of(6), quality=100)["bytes"]
    no_tiff = content.replace(b"Exif\0\0II", b"Exif\0\0xx").replace(b"Exif\0\0MM", b"Exif\0\0xx")
    assert no_tiff != content
    assert load_picture({"bytes": no_tiff, "path": None}, 3).size == (24, 16)


@pytest.mark.parametrize("error", [KeyError("a"), struct.error(), RuntimeError("b"), MemoryError(), AssertionError()])
@pytest.mark.parametrize("method", ["load", "convert"])
def test_errors_of_every_type_name_the_file(monkeypatch, tmp_path, error, method):
    def fail(*args, **kwargs):
        raise error

    CORNER.save(tmp_path / "a.png")
    monkeypatch.setattr(PILImage.Image, method, fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail if method == "load" else lambda self: None)
    with pytest.raises(BrokenImageError, match=r"a\.png cannot be read as an image \(\S+\)"):
        load_picture({"bytes": None, "path": str(tmp_path / "a.png")}, 3)


def test_no_file_stays_open(tmp_path):
    frames = [PILImage.new("L", (4, 4), level) for level in (50, 90)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    opened = []
    real = PILImage.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PILImage, "open", lambda source: opened.append(real(source)) or opened[-1])
        picture = load_picture({"bytes": None, "path": str(tmp_path / "a.tiff")}, 1)
    assert picture.getpixel((0, 0)) == 50  # the first frame
    assert opened[0].fp is None

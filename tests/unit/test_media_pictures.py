"""Pictures are told by their content, shown as a viewer shows them, and written in the format asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnibus.errors import EngineError, InvalidRequest
from omnibus.media import pictures

pytestmark = pytest.mark.unit
PIXELS = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def colour(data: bytes) -> tuple[int, ...]:
    return tuple(pictures.shown(data).getpixel((0, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_a_picture_is_told_by_its_content_in_every_format(kind: str) -> None:
    data = file_of(Image.new("RGB", (6, 4), (250, 5, 5)), kind)
    assert pictures.media_type(data) == Image.MIME[kind]
    assert pictures.pixels(data) == 24
    assert np.allclose(colour(data), (250, 5, 5), atol=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "red"), [(3, (20, 8)), (6, (8, 4)), (8, (8, 20))])
def test_a_picture_is_turned_as_its_camera_was_held(kind: str, orientation: int, red: tuple[int, int]) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :8] = (255, 0, 0)
    shown = pictures.shown(file_of(Image.fromarray(pixels), kind, exif=turned(orientation)))
    assert shown.size == ((24, 16) if orientation == 3 else (16, 24))
    found = shown.getpixel(red)
    assert isinstance(found, tuple)
    assert found[0] > 200


def test_broken_exif_is_ignored() -> None:
    assert pictures.shown(file_of(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\0\0nonsense")).size == (6, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (6, 4), (255, 0, 0, 0)).convert(mode)
    assert colour(file_of(clear)) == (255, 255, 255)


def test_half_transparency_is_mixed_with_white() -> None:
    assert colour(file_of(Image.new("RGBA", (6, 4), (0, 0, 0, 128)))) == (127, 127, 127)


@pytest.mark.parametrize(("mode", "ink"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_is_white(mode: str, ink: Any) -> None:
    assert colour(file_of(Image.new(mode, (6, 4), ink), transparency=ink)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    deep = np.array([[0, 25_700], [40_000, 65_535]], np.uint16)
    shown = np.asarray(pictures.shown(file_of(Image.fromarray(deep), kind)))
    np.testing.assert_array_equal(shown[..., 0], [[0, 100], [156, 255]])


def test_a_deep_picture_keeps_its_orientation_and_its_transparent_grey() -> None:
    deep = np.full((2, 4), 30_000, np.uint16)
    data = file_of(Image.fromarray(deep), exif=turned(6), transparency=30_000)
    assert pictures.shown(data).size == (2, 4)
    assert colour(data) == (255, 255, 255)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"\xc5\xd0\xd3\xc6" + bytes(60),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        file_of(Image.fromarray(PIXELS), "PCX"),
        file_of(Image.fromarray(PIXELS))[:60],
        file_of(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"),
    ],
    ids=["nothing", "junk", "postscript", "dos postscript", "svg", "no listed format", "half a file", "floats"],
)
def test_invalid_when_it_is_no_picture_of_a_listed_format(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        pictures.shown(data)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_pixels_survive_encoding(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.encoded(pixels)))), pixels.squeeze())


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 6, 3), np.float32),
        np.zeros(4, np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros((4, 6, 2), np.uint8),
    ],
)
def test_engine_error_when_an_array_is_no_picture(pixels: np.ndarray) -> None:
    with pytest.raises(EngineError, match="uint8 of shape"):
        pictures.encoded(pixels)


@pytest.mark.parametrize("wanted", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("made", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_is_converted_to_what_was_asked_for(made: str, wanted: str) -> None:
    converted = Image.open(io.BytesIO(pictures.converted(file_of(Image.new("RGB", (6, 4), "red"), made), wanted)))
    assert (converted.format, converted.size) == (wanted.upper(), (6, 4))


def test_a_picture_is_left_alone_when_it_has_the_format() -> None:
    data = file_of(Image.new("RGB", (6, 4)), "JPEG", quality=11)
    assert pictures.converted(data, "jpeg") is data


def test_transparency_is_kept_where_the_format_has_it_and_white_elsewhere() -> None:
    clear = file_of(Image.new("RGBA", (6, 4), (255, 0, 0, 0)))
    assert Image.open(io.BytesIO(pictures.converted(clear, "webp"))).mode == "RGBA"
    assert np.allclose(colour(pictures.converted(clear, "jpeg")), 255, atol=3)


@pytest.mark.parametrize("data", [b"junk", file_of(Image.new("L", (20_000, 1)))])
def test_engine_error_when_a_picture_cannot_be_converted(data: bytes) -> None:
    with pytest.raises(EngineError):
        pictures.converted(data, "webp")

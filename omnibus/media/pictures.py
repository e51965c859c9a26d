"""Pictures as files: what one is, as a viewer shows it, and in another format."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
from PIL import Image, ImageOps

from omnibus.errors import DeadlineExceeded, EngineError, InvalidRequest, RequestError, RequestTooLarge
from omnibus.media.effort import Effort

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
"""Formats that are read. Invariant: raster formats that Pillow decodes in this process; PostScript would start Ghostscript."""
MAX_PIXELS = 64 * 1024 * 1024
"""Pixels of all pictures of a request together: a small file can claim a billion."""
_COPIED = frozenset({"GIF", "JPEG2000", "TIFF", "WEBP"})
"""Formats whose decoders hold a picture several times over: their bound is half of the others'."""
_LARGE = 1 << 24
"""Pixels beyond which a picture waits for others as large to be checked: one decodes at a time in this process."""
_ONE_LARGE = threading.Lock()
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def opened(data: bytes) -> Image.Image:
    """A picture whose header alone is read; raises InvalidRequest for anything that is none of FORMATS."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMBS as error:
        raise RequestTooLarge(f"the picture is too large: {error}") from error
    except Exception as error:  # decoders raise whatever their many parts raise
        raise InvalidRequest(f"not a picture in one of the formats {', '.join(FORMATS)}") from error


def pixels(data: bytes) -> int:
    """Pixels of a picture, as its header says; raises as `opened`."""
    picture = opened(data)
    return picture.width * picture.height


def check(data: bytes, most: int, effort: Effort) -> int:
    """Decode the first frame of a picture and keep nothing; returns its pixels.

    Raises InvalidRequest for what `shown` could not show, RequestTooLarge for more than `most` pixels, before it unpacks any.
    """
    picture = opened(data)
    size = picture.width * picture.height
    if size > (most := min(most, MAX_PIXELS // 2) if picture.format in _COPIED else most):
        raise RequestTooLarge(f"the picture has more than {most} pixels")
    _refuse_floats(picture)
    with _ONE_LARGE if size > _LARGE else nullcontext(), _decoding():
        effort.poll()
        picture.draft("RGB", (1, 1))  # of a JPEG all is read, and an eighth of each side is unpacked
        picture.load()
    return size


def media_type(data: bytes) -> str:
    """The media type of a picture; raises as `opened`."""
    found = opened(data).format or ""
    return Image.MIME["JPEG" if found == "MPO" else found]  # an MPO is a JPEG with more behind it


def shown(data: bytes) -> Image.Image:
    """The first frame of a picture in RGB, as a viewer shows it: turned by its EXIF orientation, over white where transparent.

    16-bit samples are scaled to 8. Raises InvalidRequest for what cannot be decoded.
    """
    with _decoding():
        picture = _oriented(_eight_bit(opened(data)))
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        colours = picture.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")


def mask(data: bytes) -> Image.Image:
    """The first frame of a picture as a mask of 8 bits: white where it is transparent, or by its brightness where all is opaque.

    Raises as `shown`.
    """
    with _decoding():
        picture = _oriented(_eight_bit(opened(data)))
        if not picture.has_transparency_data:
            return picture.convert("L")
        return ImageOps.invert(picture.convert("RGBA").getchannel("A"))


def encoded(pixels: np.ndarray) -> bytes:
    """The PNG file of a uint8 image, shape (H, W) or (H, W, C), C of 1, 3 or 4; raises EngineError for anything else."""
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    colours = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[-1] in (3, 4))
    if pixels.dtype != np.uint8 or not colours or not pixels.size:
        raise EngineError(
            f"a picture must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), not {pixels.dtype} {pixels.shape}"
        )
    return _written(Image.fromarray(np.ascontiguousarray(flat)), "png")


def converted(data: bytes, wanted: str) -> bytes:
    """The picture as png, jpeg or webp; as it is when it has that format. Raises EngineError when it cannot be."""
    try:
        if media_type(data) == f"image/{wanted}":
            return data
        picture = opened(data)
        keeps_alpha = wanted != "jpeg" and picture.has_transparency_data
        return _written(_oriented(picture).convert("RGBA") if keeps_alpha else shown(data), wanted)
    except (InvalidRequest, RequestTooLarge) as error:
        raise EngineError(error.message) from error


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except (RequestError, DeadlineExceeded):
        raise
    except Exception as error:  # decoders raise whatever their many parts raise
        raise InvalidRequest(f"the picture cannot be decoded: {error}") from error


def _written(picture: Image.Image, wanted: str) -> bytes:
    file = io.BytesIO()
    try:
        picture.save(file, format=wanted.upper())
    except (OSError, ValueError) as error:  # a side that the format cannot hold
        raise EngineError(f"a picture of {picture.width}x{picture.height} cannot be written as {wanted}") from error
    return file.getvalue()


def _oriented(picture: Image.Image) -> Image.Image:
    with suppress(
        SyntaxError, ValueError, TypeError, LookupError, OSError
    ):  # of broken EXIF data, which viewers ignore
        if picture.getexif().get(0x0112, 1) != 1:
            return ImageOps.exif_transpose(picture)
    return picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits a sample: Pillow would clip deeper greys to white."""
    _refuse_floats(picture)
    if not picture.mode.startswith("I"):
        return picture
    samples = np.asarray(picture).astype(np.int64)
    if (clear := picture.info.get("transparency")) is not None:
        samples[samples == clear] = 0xFFFF
    scaled = Image.fromarray((samples.clip(0, 0xFFFF) / 257).round().astype(np.uint8))
    scaled.info.update({name: value for name, value in picture.info.items() if name == "exif"})
    return scaled


def _refuse_floats(picture: Image.Image) -> None:
    if picture.mode == "F":
        raise InvalidRequest("a picture of floating-point samples has no agreed range; send 8 or 16 bits a sample")

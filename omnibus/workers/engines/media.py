"""The files of a request, decoded for a model: bounded together, before anything is unpacked. Work for a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image

from omnibus.errors import RequestError, RequestTooLarge
from omnibus.media import pictures, sound
from omnibus.wire.request import AudioPart, ImagePart, Message, media_parts

MAX_PIXELS = 64 * 1024 * 1024
"""Pixels of all pictures of a request together: a small file can claim a billion."""


def check_sizes(messages: Sequence[Message]) -> None:
    """Read what the files claim to hold, one after the other, and unpack nothing.

    Raises InvalidRequest for a file in no known format, RequestTooLarge beyond MAX_PIXELS or `sound.MAX_SAMPLES`.
    """
    pixels = samples = 0
    for where, part in media_parts(messages):
        with _naming(where):
            if isinstance(part, ImagePart):
                pixels += pictures.pixels(part.data)
            elif isinstance(part, AudioPart):
                samples += sound.length(part.data)
            if pixels > MAX_PIXELS:
                raise RequestTooLarge(f"the pictures of a request may have {MAX_PIXELS} pixels together")
            if samples > sound.MAX_SAMPLES:
                raise RequestTooLarge(f"the sounds of a request may have {sound.MAX_SAMPLES} samples together")


def decode_image(part: ImagePart, where: str = "image") -> Image.Image:
    """The RGB picture inside a request as a viewer shows it.

    Raises InvalidRequest for what is none, RequestTooLarge beyond MAX_PIXELS; both name `where`.
    """
    with _naming(where):
        if pictures.pixels(part.data) > MAX_PIXELS:
            raise RequestTooLarge(f"a picture may have {MAX_PIXELS} pixels")
        return pictures.shown(part.data)


def decode_audio(part: AudioPart, where: str = "audio", most: int = sound.MAX_SAMPLES) -> tuple[np.ndarray, int]:
    """Float32 samples (frames, channels) in [-1, 1] and their rate in Hz.

    Raises InvalidRequest for what is no sound, RequestTooLarge beyond `most` samples; both name `where`.
    """
    with _naming(where):
        samples, rate = sound.decoded(part.data, most)
        return samples.T, rate


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        error.param = where
        raise

"""The files of a request, decoded for a model. Their sum was bounded at admission. Work for a thread."""

from __future__ import annotations

import numpy as np
from PIL import Image

from omnibus.errors import RequestTooLarge
from omnibus.media import pictures, sound
from omnibus.requests.request_files import naming
from omnibus.wire.request import AudioPart, ImagePart


def decode_image(part: ImagePart, where: str = "image", *, as_mask: bool = False) -> Image.Image:
    """The RGB picture inside a request as a viewer shows it; or as a mask, in which white is what is painted anew.

    Raises InvalidRequest for what is none, RequestTooLarge beyond MAX_PIXELS; both name `where`.
    """
    with naming(where):
        if pictures.pixels(part.data) > pictures.MAX_PIXELS:
            raise RequestTooLarge(f"a picture may have {pictures.MAX_PIXELS} pixels")
        return pictures.mask(part.data) if as_mask else pictures.shown(part.data)


def decode_audio(part: AudioPart, where: str = "audio", most: int = sound.MAX_SAMPLES) -> tuple[np.ndarray, int]:
    """Float32 samples (frames, channels) in [-1, 1] and their rate in Hz.

    Raises InvalidRequest for what is no sound, RequestTooLarge beyond `most` samples; both name `where`.
    """
    with naming(where):
        samples, rate = sound.decoded(part.data, most)
        return samples.T, rate

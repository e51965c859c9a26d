"""Pictures and sound as files: what requests bring, and what final outputs leave as.

Encoding and decoding are work for a thread, not for the event loop.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
from PIL import Image

from omnibus.errors import EngineError, InvalidRequest, RequestTooLarge
from omnibus.wire.request import AudioPart, ImagePart

MAX_PIXELS = 64 * 1024 * 1024
"""A larger image is refused before it is unpacked: a small file can claim a billion pixels."""
MAX_AUDIO_SAMPLES = 1 << 28
"""A longer recording (channels × frames) is refused before it is unpacked."""


def encode_image(images: np.ndarray) -> list[bytes]:
    """PNG files of uint8 images, shape (H, W), (H, W, C) or a batch (n, H, W, C), C of 1, 3 or 4; one file an image."""
    if images.dtype != np.uint8 or images.ndim not in (2, 3, 4):
        raise EngineError(f"an image output must be uint8 of 2 to 4 dimensions, not {images.dtype} {images.shape}")
    batch = images if images.ndim == 4 else images[np.newaxis]
    return [_png(image) for image in batch]


def encode_audio(samples: np.ndarray, rate: int) -> bytes:
    """A 16-bit WAV file of float samples in [-1, 1], shape (frames,) or (channels, frames); louder ones are clipped."""
    if samples.ndim not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        raise EngineError(f"an audio output must be float of 1 or 2 dimensions, not {samples.dtype} {samples.shape}")
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples.T, -1.0, 1.0), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def decode_image(part: ImagePart) -> Image.Image:
    """The RGB image inside a request; raises InvalidRequest for what is none, RequestTooLarge beyond MAX_PIXELS."""
    try:
        image = Image.open(io.BytesIO(part.data))
        if image.width * image.height > MAX_PIXELS:
            raise RequestTooLarge(f"an image of {image.width}x{image.height} pixels is more than {MAX_PIXELS}")
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidRequest(f"an image part of {part.media_type} cannot be decoded: {error}", param="image") from error


def decode_audio(part: AudioPart) -> tuple[np.ndarray, int]:
    """Float32 samples (frames, channels) in [-1, 1] and their rate in Hz; InvalidRequest for what is no audio."""
    try:
        with soundfile.SoundFile(io.BytesIO(part.data)) as file:
            if file.frames * file.channels > MAX_AUDIO_SAMPLES:
                raise RequestTooLarge(f"audio of {file.frames} frames is too long")
            return file.read(dtype="float32", always_2d=True), int(file.samplerate)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise InvalidRequest(f"an audio part of {part.media_type} cannot be decoded: {error}", param="audio") from error


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    pixels = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()

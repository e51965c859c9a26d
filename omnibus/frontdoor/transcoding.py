"""Sound and pictures in the file format that the caller asked for. Encoding runs in a thread."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import soundfile
from PIL import Image

from omnibus.client.request_events import Output
from omnibus.errors import EngineError

PCM_RATE = 24_000
"""Rate of headerless samples, Hz: what clients of OpenAI's API take for granted."""
_SOUNDFILE = MappingProxyType(
    {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}
)
_RATES = MappingProxyType(
    {
        "mp3": (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
        "opus": (8000, 12_000, 16_000, 24_000, 48_000),
        "pcm": (PCM_RATE,),
    }
)
"""Rates that a format can hold, ascending; others hold any."""
_TYPES = MappingProxyType(
    {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/ogg", "pcm": "audio/pcm"}
)


async def transcoded(output: Output, *, audio: str | None = None, image: str | None = None) -> Output:
    """The output with its files in these formats; an output of another modality, or already in the format, as it is.

    `audio` is wav, flac, mp3, opus, pcm or pcm16 (16-bit little-endian mono samples at PCM_RATE); `image` is png, jpeg or
    webp. Raises EngineError when the files cannot be read.
    """
    if output.modality == "audio" and audio is not None:
        return await asyncio.to_thread(_audio_output, output, audio.removesuffix("16"))
    if output.modality == "image" and image is not None:
        return await asyncio.to_thread(_image_output, output, image)
    return output


def _audio_output(output: Output, audio: str) -> Output:
    if output.media_type == _TYPES[audio]:
        return output
    return replace(output, media_type=_TYPES[audio], items=tuple(encode_audio(item, audio) for item in output.items))


def _image_output(output: Output, image: str) -> Output:
    if output.media_type == f"image/{image}":
        return output
    return replace(output, media_type=f"image/{image}", items=tuple(encode_image(item, image) for item in output.items))


def encode_audio(data: bytes, audio: str) -> bytes:
    """A sound file in another format, at a rate that the format can hold."""
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise EngineError(f"the pipeline's audio cannot be read: {error}") from error
    samples, rate = _at_possible_rate(samples, rate, _RATES.get(audio, (rate,)))
    if audio == "pcm":
        pcm: bytes = np.round(np.clip(samples.mean(axis=1), -1.0, 1.0) * 32767).astype("<i2").tobytes()
        return pcm
    container, subtype = _SOUNDFILE[audio]
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def encode_image(data: bytes, image: str) -> bytes:
    """An image file in another format; what is transparent turns black where the format has no such thing."""
    try:
        picture = Image.open(io.BytesIO(data))
        file = io.BytesIO()
        (picture.convert("RGB") if image == "jpeg" else picture).save(file, format=image.upper())
    except (OSError, ValueError) as error:
        raise EngineError(f"the pipeline's image cannot be read: {error}") from error
    return file.getvalue()


def _at_possible_rate(samples: np.ndarray, rate: int, possible: tuple[int, ...]) -> tuple[np.ndarray, int]:
    if rate in possible or not len(samples):
        return samples, rate if rate in possible else possible[0]
    chosen = next((one for one in possible if one > rate), possible[-1])
    return resample(samples, rate, chosen), chosen


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples (frames, channels) at another rate, band-limited: the spectrum cut or padded, as a whole."""
    frames = max(1, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples, axis=0)
    resampled = np.fft.irfft(spectrum, n=frames, axis=0) * (frames / len(samples))
    return resampled.astype(np.float32)

"""Sound as files, by FFmpeg's libraries (PyAV): what one is, its samples, and in another format."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import av
import numpy as np

from omnibus.errors import EngineError, InvalidRequest, RequestTooLarge
from omnibus.media.containers import opened, reason, recognised
from omnibus.media.effort import Effort

MAX_SAMPLES = 1 << 26
"""Samples (channels × frames) that are unpacked of one file, or of all files of a request: 23 minutes of mono at 48 kHz."""
MAX_CHANNELS = 8
"""Channels of a sound that is written."""
MAX_RATE = 768_000
PCM_RATE = 24_000
"""Rate of headerless samples, Hz: what clients of OpenAI's API take for granted."""


@dataclass(frozen=True, slots=True)
class _Format:
    """How a format is written."""

    media_type: str
    container: str
    codec: str
    samples: str
    """The encoder's sample format, FFmpeg's name."""
    channels: int = MAX_CHANNELS
    """Channels that it can hold; more are mixed down."""


FORMATS = MappingProxyType(
    {
        "wav": _Format("audio/wav", "wav", "pcm_s16le", "s16"),
        "flac": _Format("audio/flac", "flac", "flac", "s16"),
        "mp3": _Format("audio/mpeg", "mp3", "libmp3lame", "s16p", 2),
        "opus": _Format("audio/ogg", "ogg", "libopus", "flt"),
        "aac": _Format("audio/aac", "adts", "aac", "fltp"),
        "pcm": _Format("audio/pcm", "s16le", "pcm_s16le", "s16", 1),
    }
)
"""Formats that are written: 16 bits a sample where they are lossless; `pcm` is headerless mono at PCM_RATE."""


def media_type(data: bytes) -> str:
    """The media type of a sound file by its first bytes; raises InvalidRequest for anything that is none."""
    return recognised(data, "audio")[1]


def length(data: bytes) -> int:
    """Samples (channels × frames) that a file claims to hold, 0 where it does not say; raises InvalidRequest for no sound."""
    with opened(data, "audio") as container:
        return _claimed(container)


def check(data: bytes, most: int, effort: Effort) -> int:
    """Decode a file's first sound and keep nothing; returns its samples. Raises as `decoded`, and as the effort's end does."""
    with opened(data, "audio") as container:
        return sum(piece.size for piece in _pieces(container, most, effort))


def decoded(data: bytes, most: int = MAX_SAMPLES) -> tuple[np.ndarray, int]:
    """Float32 samples (channels, frames) in [-1, 1] of a file's first sound, and their rate in Hz.

    Raises InvalidRequest for what cannot be decoded or holds nothing, RequestTooLarge beyond `most` samples.
    """
    with opened(data, "audio") as container:
        rate = int(container.streams.audio[0].rate or 0)
        return np.concatenate(list(_pieces(container, most, Effort(math.inf))), axis=1), rate


def encoded(samples: np.ndarray, rate: int, wanted: str = "wav", *, at: int | None = None) -> bytes:
    """A file of samples, shape (frames,) or (channels, frames): floats in [-1, 1], clipped, or signed integers.

    The rate, or that of `at`, is kept where the format can hold it, else the next higher one is taken. Raises EngineError for
    samples that cannot be a sound.
    """
    checked, into = _checked(samples, rate), FORMATS[wanted]
    try:
        return _encode(checked, rate, _possible(at or rate, into), into)
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise EngineError(
            f"{len(checked)} channels at {rate} Hz cannot be written as {wanted}: {reason(error)}"
        ) from error


def converted(data: bytes, wanted: str) -> bytes:
    """The sound in another format; as it is when it has that format. Raises EngineError when it cannot be read."""
    try:
        same = media_type(data) == FORMATS[wanted].media_type and (wanted != "opus" or b"OpusHead" in data[:64])
        return data if same else encoded(*decoded(data), wanted)
    except (InvalidRequest, RequestTooLarge) as error:
        raise EngineError(error.message) from error


def _pieces(container: Any, most: int, effort: Effort) -> Iterator[np.ndarray]:
    """Samples of a container's first sound, piece by piece."""
    total = 0
    if _claimed(container) > most:
        raise RequestTooLarge(f"the sound has more than {most} samples")
    try:
        for piece in _planes(_frames(container, effort)):
            total += piece.size
            if total > most:
                raise RequestTooLarge(f"the sound has more than {most} samples")
            yield piece
    except (av.FFmpegError, ValueError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the sound cannot be decoded: {reason(error)}") from error
    if not total:
        raise InvalidRequest("the sound is empty")


def _frames(container: Any, effort: Effort) -> Iterator[Any]:
    for packet in container.demux(container.streams.audio[0]):
        effort.poll()
        yield from packet.decode()


def _claimed(container: Any) -> int:
    stream = container.streams.audio[0]
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / av.time_base
    return int(seconds * (stream.rate or 0)) * (stream.channels or 1)


def _planes(frames: Iterator[Any]) -> Iterator[np.ndarray]:
    """Frames of any sample format as float32 (channels, frames)."""
    resampler = av.AudioResampler(format="flt")
    for frame in frames:
        for packed in resampler.resample(frame):
            yield packed.to_ndarray().reshape(-1, packed.layout.nb_channels).T


def _checked(samples: np.ndarray, rate: int) -> np.ndarray:
    """The samples as float32 (channels, frames)."""
    planes = np.atleast_2d(samples)
    number = np.issubdtype(samples.dtype, np.signedinteger) or np.issubdtype(samples.dtype, np.floating)
    if samples.ndim not in (1, 2) or not number or not planes.size or len(planes) > MAX_CHANNELS:
        wanted = f"floats or signed integers of shape (frames,) or (channels, frames), up to {MAX_CHANNELS} channels"
        raise EngineError(f"a sound must be {wanted}, not {samples.dtype} {samples.shape}")
    if not 0 < rate <= MAX_RATE:
        raise EngineError(f"a sound's rate must be 1 to {MAX_RATE} Hz, not {rate}")
    if not np.isfinite(planes).all():
        raise EngineError("a sound's samples must be finite numbers")
    scale = 1.0 if np.issubdtype(samples.dtype, np.floating) else -float(np.iinfo(samples.dtype).min)
    return (planes / scale).clip(-1.0, 1.0).astype(np.float32)


def _encode(planes: np.ndarray, rate: int, out_rate: int, into: _Format) -> bytes:
    packed = np.ascontiguousarray(planes.T).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=_layout(len(planes)))
    frame.sample_rate = rate
    file = io.BytesIO()
    with av.open(file, "w", format=into.container, options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(into.codec, rate=out_rate)
        stream.layout = _layout(min(len(planes), into.channels))
        stream.format = into.samples
        stream.codec_context.open()
        fitted = av.AudioResampler(
            format=into.samples, layout=stream.layout, rate=stream.rate, frame_size=stream.frame_size or None
        )
        for piece in (*fitted.resample(frame), *fitted.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo"}.get(channels, f"{channels}c")


def _possible(rate: int, into: _Format) -> int:
    """The rate itself where the format can hold it, else the next higher one, else the highest."""
    if into is FORMATS["pcm"]:
        return PCM_RATE
    rates = sorted(av.Codec(into.codec, "w").audio_rates or [rate])
    return next((one for one in rates if one >= rate), rates[-1])

"""Sound as files, by FFmpeg's libraries (PyAV): what one is, its samples, and in another format."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import av
import numpy as np

from omnibus.errors import EngineError, InvalidRequest, RequestTooLarge
from omnibus.media.containers import Pipe, opened, reason, recognised
from omnibus.media.effort import Effort
from omnibus.media.sound_formats import FORMATS, MAX_CHANNELS, PCM_RATE, SoundFormat

MAX_SAMPLES = 1 << 26
"""Samples (channels × frames) that are unpacked of one file, or of all files of a request: 23 minutes of mono at 48 kHz."""
MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_GROWN = 1 << 28
"""Samples of a file whose rate is raised: from a low rate a few bytes would fill the memory."""
_SLICE = 1 << 16
"""Frames that are encoded at a time: resampling needs some times their memory."""
_PAGE = {"page_duration": "20000"}
"""FFmpeg's option of an ogg file that leaves while it is made: its pages have 20 ms, and not a second."""


def media_type(data: bytes) -> str:
    """The media type of a sound file by its first bytes; raises InvalidRequest for anything that is none."""
    return recognised(data, "audio")[1]


def length(data: bytes) -> int:
    """Samples (channels × frames) that a file claims to hold, 0 where it does not say; raises InvalidRequest for no sound."""
    with opened(data, "audio") as container:
        return _claimed(container)


def check(data: bytes, most: int = sys.maxsize, effort: Effort | None = None) -> int:
    """Decode a file's first sound and keep nothing; returns its samples. Raises as `decoded`, and as the effort's end does.

    A sound of ours has no bound: only what a request brings is decoded for its sender.
    """
    with opened(data, "audio") as container:
        return sum(piece.size for piece in _pieces(container, most, effort or Effort(math.inf)))


def decoded(data: bytes, most: int = MAX_SAMPLES) -> tuple[np.ndarray, int]:
    """Float32 samples (channels, frames) in [-1, 1] of a file's first sound, and their rate in Hz.

    Raises InvalidRequest for what cannot be decoded or holds nothing, RequestTooLarge beyond `most` samples.
    """
    with opened(data, "audio") as container:
        rate = int(container.streams.audio[0].rate or 0)
        return np.concatenate(list(_pieces(container, most, Effort(math.inf))), axis=1), rate


def mono(data: bytes, rate: int, most: int = MAX_SAMPLES) -> np.ndarray:
    """Float32 samples (frames,) in [-1, 1] of a file's first sound at another rate, channels mixed; errors as of `decoded`."""
    with opened(data, "audio") as container:
        pieces = list(_pieces(container, most, Effort(math.inf), layout="mono", rate=rate))
    mixed: np.ndarray = np.concatenate(pieces, axis=1)[0]
    return mixed


def rest(data: bytes, seconds: float) -> tuple[np.ndarray, int]:
    """The samples behind so many seconds of a sound that a stage made, however long; values as of `decoded`, maybe no frames.

    Raises InvalidRequest for what cannot be decoded.
    """
    with opened(data, "audio") as container:
        rate = int(container.streams.audio[0].rate or 0)
        skip, pieces = round(seconds * rate), list[np.ndarray]()
        for piece in _pieces(container, sys.maxsize, Effort(math.inf)):
            if piece.shape[1] > skip:
                pieces.append(piece[:, skip:])
            skip = max(0, skip - piece.shape[1])
        return np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0), np.float32), rate


def encoded(samples: np.ndarray, rate: int, wanted: str = "wav", *, at: int | None = None) -> bytes:
    """A file of samples, shape (frames,) or (channels, frames): floats in [-1, 1], clipped, or signed integers.

    The rate, or that of `at`, is kept where the format can hold it, else the next higher one is taken. Raises EngineError for
    samples that cannot be a sound.
    """
    return _file([samples], rate, wanted, at)


def converted(data: bytes, wanted: str) -> bytes:
    """A sound of ours, however long, in another format; as it is when it has that format.

    Raises EngineError when it cannot be read.
    """
    try:
        if media_type(data) == FORMATS[wanted].media_type and (wanted != "opus" or b"OpusHead" in data[:64]):
            return data
        with opened(data, "audio") as container:
            rate = int(container.streams.audio[0].rate or 0)
            return _file(_pieces(container, sys.maxsize, Effort(math.inf)), rate, wanted)
    except (InvalidRequest, RequestTooLarge) as error:
        raise EngineError(error.message) from error


def _file(pieces: Iterable[np.ndarray], rate: int, wanted: str, at: int | None = None) -> bytes:
    """The file of samples that follow each other; one piece at a time is in memory beside it."""
    file, size, checked = io.BytesIO(), 0, (planes(piece, rate) for piece in pieces)
    first = next(checked)
    encoder = SoundEncoder(rate, len(first), wanted, at=at, file=file)
    for piece in chain([first], checked):
        size += piece.size
        if encoder.growth > 1 and size * encoder.growth > MAX_GROWN:
            seconds = size // len(piece) // rate
            raise EngineError(f"{seconds} seconds at {rate} Hz are too much as {wanted}: make a higher rate")
        encoder.feed(piece)
    encoder.end()
    return file.getvalue()


def _pieces(container: Any, most: int, effort: Effort, **wanted: Any) -> Iterator[np.ndarray]:
    """Samples of a container's first sound, piece by piece; `wanted` are a resampler's layout and rate."""
    total = 0
    if _claimed(container) > most:
        raise RequestTooLarge(f"the sound has more than {most} samples")
    try:
        for piece in _planes(_frames(container, effort), **wanted):
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


def _planes(frames: Iterator[Any], **wanted: Any) -> Iterator[np.ndarray]:
    """Frames of any sample format as float32 (channels, frames)."""
    resampler = av.AudioResampler(format="flt", **wanted)
    for frame in chain(frames, [None] if wanted else []):
        for packed in resampler.resample(frame):
            yield packed.to_ndarray().reshape(-1, packed.layout.nb_channels).T


def planes(samples: np.ndarray, rate: int) -> np.ndarray:
    """The samples as float32 (channels, frames) in [-1, 1]; shapes, values and errors are those of `encoded`."""
    channels = np.atleast_2d(samples)
    number = np.issubdtype(samples.dtype, np.signedinteger) or np.issubdtype(samples.dtype, np.floating)
    if samples.ndim not in (1, 2) or not number or not channels.size or len(channels) > MAX_CHANNELS:
        wanted = f"floats or signed integers of shape (frames,) or (channels, frames), up to {MAX_CHANNELS} channels"
        raise EngineError(f"a sound must be {wanted}, not {samples.dtype} {samples.shape}")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise EngineError(f"a sound's rate must be {MIN_RATE} to {MAX_RATE} Hz, not {rate}")
    if not np.isfinite(channels).all():
        raise EngineError("a sound's samples must be finite numbers")
    scale = 1.0 if np.issubdtype(samples.dtype, np.floating) else -float(np.iinfo(samples.dtype).min)
    return (channels / scale).clip(-1.0, 1.0).astype(np.float32)


class SoundEncoder:
    """Writes a sound as a file while it is made: blocks while it encodes, for one thread at a time.

    A file of unknown length has the greatest that there is in the header of a wav, and none in those of other formats.
    """

    def __init__(self, rate: int, channels: int, wanted: str, *, at: int | None = None, file: Any = None) -> None:
        """`file` takes the bytes, and is sought in where it can be; without one `write` and `end` return them.

        Raises EngineError for what cannot be written in the format.
        """
        into = FORMATS[wanted]
        self._rate, self._channels, self._wanted, self._pipe = rate, channels, wanted, Pipe()
        options = {"fflags": "+bitexact", "flush_packets": "1"}
        options |= _PAGE if file is None and into.container == "ogg" else {}
        try:
            container: Any = av.open(file or self._pipe, "w", format=into.container, options=options)
            stream: Any = container.add_stream(into.codec, rate=_possible(at or rate, into))
            stream.layout = _layout(min(channels, into.channels))
            stream.format = into.samples
            stream.codec_context.open()
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise self._failed(error) from error
        self._container, self._stream = container, stream
        self.growth = stream.rate / rate
        """Frames of the file for each frame of the samples."""
        self._fitted = av.AudioResampler(
            format=into.samples, layout=stream.layout, rate=stream.rate, frame_size=stream.frame_size or None
        )

    def write(self, samples: np.ndarray) -> bytes:
        """The bytes that the next samples bring, maybe none yet; shapes, values and errors are those of `encoded`."""
        return self.feed(planes(samples, self._rate))

    def feed(self, checked: np.ndarray) -> bytes:
        """The same of float32 samples (channels, frames) that were checked."""
        if len(checked) != self._channels:
            raise EngineError(f"a piece of a sound has {len(checked)} channels, and the first had {self._channels}")
        return b"".join(
            self._muxed(self._frame(checked[:, start : start + _SLICE])) for start in range(0, checked.shape[1], _SLICE)
        )

    def end(self) -> bytes:
        """The rest of the file; nothing can be written any more."""
        rest = self._muxed(None)
        self._container.close()
        return rest + self._pipe.taken()

    def _frame(self, checked: np.ndarray) -> Any:
        packed = np.ascontiguousarray(checked.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=_layout(self._channels))
        frame.sample_rate = self._rate
        return frame

    def _muxed(self, frame: Any) -> bytes:
        try:
            for piece in self._fitted.resample(frame):
                self._container.mux(self._stream.encode(piece))
            if frame is None:
                self._container.mux(self._stream.encode(None))
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise self._failed(error) from error
        return self._pipe.taken()

    def _failed(self, error: Exception) -> EngineError:
        sound = f"{self._channels} channels at {self._rate} Hz"
        return EngineError(f"{sound} cannot be written as {self._wanted}: {reason(error)}")


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo"}.get(channels, f"{channels}c")


def _possible(rate: int, into: SoundFormat) -> int:
    """The rate itself where the format can hold it, else the next higher one, else the highest."""
    if into is FORMATS["pcm"]:
        return PCM_RATE
    rates = sorted(av.Codec(into.codec, "w").audio_rates or [rate])
    return next((one for one in rates if one >= rate), rates[-1])

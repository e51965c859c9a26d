"""The input audio buffer of a conversation: sound that belongs to no turn yet. Pure."""

from __future__ import annotations

import io
import wave

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.frontdoor.realtime.turn_detection import RATE
from omnibus.wire.lazy_numpy import np

SAMPLE_BYTES = 2
MAX_BYTES = 15 * 1024 * 1024
"""Bytes of one turn: 5 minutes and a half."""
_WAV_HEAD = 44


class AudioBuffer:
    """Samples that belong to no turn yet, each with its number since the conversation began."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._first = 0
        """Number of the first sample that is kept."""

    @property
    def end(self) -> int:
        """Samples that have come."""
        return self._first + len(self._kept) // SAMPLE_BYTES

    def append(self, data: bytes) -> np.ndarray:
        """Keep the next samples, and return them; raises RequestTooLarge beyond MAX_BYTES, InvalidRequest for half samples."""
        if len(data) % SAMPLE_BYTES:
            raise InvalidRequest("the sound must be whole samples of 16 bits", param="audio")
        if len(self._kept) + len(data) > MAX_BYTES:
            message = f"the buffer holds {MAX_BYTES} bytes at most: commit or clear it, then send this again"
            raise RequestTooLarge(message, param="audio")
        self._kept += data
        return np.frombuffer(data, "<i2")

    def drop_before(self, sample: int) -> None:
        """Forget the samples before this one."""
        count = min(max(sample - self._first, 0), len(self._kept) // SAMPLE_BYTES)
        del self._kept[: count * SAMPLE_BYTES]
        self._first += count

    def size(self, end: int) -> int:
        """Bytes before the sample `end`."""
        return min(max(end - self._first, 0) * SAMPLE_BYTES, len(self._kept))

    def take(self, end: int) -> bytes:
        """Remove the samples before `end`, and return them."""
        taken = bytes(self._kept[: self.size(end)])
        self.drop_before(end)
        return taken


def to_wav(samples: bytes) -> bytes:
    """A file of samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(SAMPLE_BYTES)
        writer.setframerate(RATE)
        writer.writeframes(samples)
    return file.getvalue()


def from_wav(file: bytes) -> bytes:
    """The samples of a file of `to_wav`."""
    return file[_WAV_HEAD:]


def milliseconds(samples: int) -> int:
    """The time that so many samples last."""
    return samples * 1000 // RATE

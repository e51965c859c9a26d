"""Texts as sound: each character is a sample, so that what was said can be read from the samples."""

from __future__ import annotations

import numpy as np

from omnibus.client.request_events import Result
from omnibus.media import sound
from tests.support import filmed_text

RATE = 24_000
"""The rate of raw sound over HTTP: nothing is converted on the way."""
_LEVELS = 128


def samples_of(text: str) -> np.ndarray:
    """The sound of an ASCII text."""
    return np.frombuffer(text.encode("ascii"), np.uint8).astype(np.float32) / _LEVELS


def text_of(samples: np.ndarray) -> str:
    """The text of a sound, also of one that was rounded to 16 bits."""
    return bytes(np.rint(np.ravel(samples) * _LEVELS).astype(np.uint8)).decode("ascii", errors="replace")


def text_of_pcm(data: bytes) -> str:
    """The text of raw samples of 16 bits."""
    return text_of(np.frombuffer(data, "<i2") / (1 << 15))


def text_of_result(result: Result) -> str | None:
    """The text output of a result, or what its film or its sound says where it has no text; None without any."""
    if (text := result.output("text")) is not None:
        return text.text
    if (film := result.output("video")) is not None:
        return filmed_text.text_of(film.items[0])
    audio = result.output("audio")
    return text_of(sound.decoded(audio.items[0])[0]) if audio is not None else None

"""The formats that sound is written in. Imports none of the libraries that write them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

MAX_CHANNELS = 8
"""Channels of a sound that is written."""
PCM_RATE = 24_000
"""Rate of headerless samples, Hz: what clients of OpenAI's API take for granted."""


@dataclass(frozen=True, slots=True)
class SoundFormat:
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
        "wav": SoundFormat("audio/wav", "wav", "pcm_s16le", "s16"),
        "flac": SoundFormat("audio/flac", "flac", "flac", "s16"),
        "mp3": SoundFormat("audio/mpeg", "mp3", "libmp3lame", "s16p", 2),
        "opus": SoundFormat("audio/ogg", "ogg", "libopus", "flt"),
        "aac": SoundFormat("audio/aac", "adts", "aac", "fltp"),
        "pcm": SoundFormat("audio/pcm", "s16le", "pcm_s16le", "s16", 1),
    }
)
"""Formats that are written: 16 bits a sample where they are lossless; `pcm` is headerless mono at PCM_RATE."""

"""Where the parts of a spoken text lie in its sound: the field `transcript` of an answer, JSON."""

from __future__ import annotations

import msgspec

from omnibus.errors import EngineError

TRANSCRIPT = "transcript"


class TimedSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence or so. Seconds from the beginning of the sound."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()


class TimedWord(msgspec.Struct, frozen=True, kw_only=True):
    """One word. Seconds from the beginning of the sound."""

    start: float
    end: float
    word: str


class TimedText(msgspec.Struct, frozen=True, kw_only=True):
    """All parts of one text, in their order; words only where they were asked for."""

    language: str
    """Its English name."""
    duration: float
    """Seconds of the whole sound."""
    segments: tuple[TimedSegment, ...]
    words: tuple[TimedWord, ...] = ()

    def encoded(self) -> str:
        """The value of the field."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def of(cls, value: str) -> TimedText:
        """Read the value of the field; raises EngineError."""
        try:
            return msgspec.json.decode(value, type=cls)
        except msgspec.DecodeError as error:
            raise EngineError(f"the transcript of a stage cannot be read: {error}") from error

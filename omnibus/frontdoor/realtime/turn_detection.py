"""Turn detection: where speech begins and ends in the sound of a microphone. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from omnibus.wire.lazy_numpy import np

RATE = 24_000
"""Samples a second of all sound of a conversation."""
_FRAME = RATE // 50
"""Samples that are looked at together: 20 ms."""
_ONSET = 3
"""Loud frames in a row that are speech: one may be a click."""
_QUIETEST, _RANGE = -60.0, 50.0
"""Loudness at the thresholds 0 and, above that, 1: dB under full scale."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech begins at this sample of the sound."""

    sample: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Speech has ended, and the silence after it at this sample."""

    sample: int


class TurnDetector(Protocol):
    """Listens to the sound of one microphone."""

    def feed(self, samples: np.ndarray) -> Iterator[SpeechStarted | SpeechStopped]:
        """The marks that the next samples bring: int16, mono, at RATE. They alternate, and never go back."""
        ...


class EnergyDetector:
    """A detector that takes for speech what is loud. The threshold 0 to 1 stands for -60 to -10 dB under full scale."""

    def __init__(self, *, threshold: float, silence_ms: int, origin: int = 0) -> None:
        """`silence_ms` ends speech; `origin` is the number of the first sample."""
        self._level = 32768.0 * 10 ** ((_QUIETEST + _RANGE * threshold) / 20)
        self._silence = max(1, silence_ms * RATE // 1000 // _FRAME)
        self._position = origin
        self._rest = np.empty(0, np.int16)
        self._loud = self._quiet = 0
        """Frames in a row."""
        self._speaks = False

    def feed(self, samples: np.ndarray) -> Iterator[SpeechStarted | SpeechStopped]:
        samples = np.concatenate((self._rest, samples))
        whole = len(samples) - len(samples) % _FRAME
        self._rest = samples[whole:]
        frames = samples[:whole].reshape(-1, _FRAME).astype(np.float32)
        for is_loud in (np.sqrt((frames**2).mean(axis=1)) >= self._level).tolist():
            self._position += _FRAME
            self._loud, self._quiet = (self._loud + 1, 0) if is_loud else (0, self._quiet + 1)
            if not self._speaks and self._loud >= _ONSET:
                self._speaks = True
                yield SpeechStarted(self._position - _ONSET * _FRAME)
            elif self._speaks and self._quiet >= self._silence:
                self._speaks = False
                yield SpeechStopped(self._position)

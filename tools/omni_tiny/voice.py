"""The sound of the canonical description: one tone pair a symbol, ten codec frames each, 8 kHz.

A symbol is attack, seven times hold, release, silence. Every tone has whole cycles a frame, so a frame's waveform depends on
its code alone and a code book of 49 entries (16 symbols × 3, and silence) says everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omnibus.omni_tiny.vocabulary import SYMBOLS

SAMPLE_RATE = 8000
HOP = 128
FRAMES_PER_SYMBOL = 10
HOLD_FRAMES = range(1, 8)
"""Places of the hold frames within a symbol."""
SILENCE_FRAME = 9
LOW_TONES = (687.5, 812.5, 937.5, 1062.5)
HIGH_TONES = (1312.5, 1437.5, 1562.5, 1687.5)
GRID = (*LOW_TONES, *HIGH_TONES)
TONE_PAIRS = {symbol: (LOW_TONES[i // 4], HIGH_TONES[i % 4]) for i, symbol in enumerate(SYMBOLS)}
AMPLITUDE = 0.3
"""Amplitude of each of the two tones; full scale is 1."""

SILENCE_CODE = 0


def codes_of(symbols: Sequence[str]) -> list[int]:
    """The codec codes that speak the symbols, ten a symbol."""
    codes: list[int] = []
    for symbol in symbols:
        attack = 1 + 3 * SYMBOLS.index(symbol)
        codes += [attack, *[attack + 1] * len(HOLD_FRAMES), attack + 2, SILENCE_CODE]
    return codes


def waveform_of(codes: Sequence[int]) -> np.ndarray:
    """The ideal sound of codes; shape (len(codes) × 128,), float32 in [-1, 1]."""
    return frame_waveforms()[np.asarray(codes, dtype=np.int64)].reshape(-1)


def frame_waveforms() -> np.ndarray:
    """The ideal sound of every code; shape (49, 128), float32."""
    time = np.arange(HOP) / SAMPLE_RATE
    rise = np.sin(np.pi / 2 * (np.arange(HOP) + 0.5) / HOP) ** 2
    frames = [np.zeros(HOP)]
    for pair in TONE_PAIRS.values():
        tone = sum((AMPLITUDE * np.sin(2 * np.pi * frequency * time) for frequency in pair), np.zeros(HOP))
        frames += [tone * rise, tone, tone * rise[::-1]]
    return np.asarray(frames, dtype=np.float32)

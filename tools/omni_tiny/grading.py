"""Graders of omni-tiny's answers: is this text, picture, sound or film the one that the prompt asked for?

The right answer follows from the prompt by the grammar, never from the model's own words.
No torch, no network, some milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from omnibus.errors import InvalidRequest
from omnibus.media import sound
from omnibus.media import video as film
from tools.omni_tiny import motion, sight, voice
from tools.omni_tiny.grammar import Scene, parse

PAIR_SHARE = 0.8
TONE_MARGIN_DB = 10.0
SILENCE_DB = -30.0
"""Level of a silence frame relative to the mean of the hold frames."""
FULL_SCALE = 0.999


@dataclass(frozen=True, slots=True)
class Grade:
    """A grade: is the answer right, and if not, what is the first fault?"""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


RIGHT = Grade(True)


def grade_text(prompt: str, text: str) -> Grade:
    """The text must be the canonical description, word for word. Raises UnparseableSentence for a prompt outside the grammar."""
    expected, words = parse(prompt).text, " ".join(text.split())
    return RIGHT if words == expected else Grade(False, f"expected {expected!r}, read {words!r}")


def grade_image(prompt: str, image: bytes | np.ndarray) -> Grade:
    """The picture must show the prompt's things and nothing else, with their colours, shapes and relation.

    `image` is an encoded picture or an array (64, 64, 3), uint8. Raises UnparseableSentence for a prompt outside the grammar.
    """
    scene = parse(prompt)
    try:
        pixels = _pixels(image)
    except (UnidentifiedImageError, OSError) as error:
        return Grade(False, f"not a picture: {error}")
    try:
        seen = sight.read_scene(pixels, first=scene.first)
    except sight.UnclearPicture as error:
        return Grade(False, str(error))
    if seen in {scene, scene.mirrored}:
        return RIGHT
    return Grade(False, f"expected {scene.text!r}, saw {seen.text!r}")


def grade_video(prompt: str, video: bytes) -> Grade:
    """The film must end with the right picture, and its first thing must have come in from its side, a thing alone from the left.

    `video` is an encoded file. Raises UnparseableSentence for a prompt outside the grammar.
    """
    scene = parse(prompt)
    try:
        shown, _ = film.frames(video)
    except InvalidRequest as error:
        return Grade(False, f"not a video: {error}")
    if not (last := grade_image(prompt, shown[-1])):
        return Grade(False, f"its last frame: {last.reason}")
    wrong = motion.fault(shown, scene)
    return Grade(False, wrong) if wrong else RIGHT


def grade_audio(prompt: str, audio: bytes | tuple[np.ndarray, int]) -> Grade:
    """The sound must speak the canonical description: each symbol's tone pair in its ten frames, then END.

    `audio` is an encoded file, or samples (N,) float in [-1, 1] and their rate. Raises UnparseableSentence for a prompt outside
    the grammar.
    """
    scene = parse(prompt)
    try:
        samples, rate = _samples(audio)
    except InvalidRequest as error:
        return Grade(False, f"not a sound: {error}")
    wrong = _wrong_form(scene, samples, rate) or _wrong_symbols(scene, samples)
    return Grade(False, wrong) if wrong else RIGHT


def _wrong_form(scene: Scene, samples: np.ndarray, rate: int) -> str:
    """Describe the fault of rate, length or level; empty if there is none."""
    frames = len(scene.symbols) * voice.FRAMES_PER_SYMBOL
    if rate != voice.SAMPLE_RATE:
        return f"expected {voice.SAMPLE_RATE} samples a second, got {rate}"
    if abs(len(samples) - frames * voice.HOP) > voice.HOP:
        return f"expected {frames} frames ± 1, got {len(samples) / voice.HOP:.1f}"
    if not np.isfinite(samples).all() or np.abs(samples).max() >= FULL_SCALE:
        return "the sound clips"
    return ""


def _wrong_symbols(scene: Scene, samples: np.ndarray) -> str:
    """Describe the fault of the tones and silences; empty if there is none."""
    count = len(scene.symbols) * voice.FRAMES_PER_SYMBOL
    padded = np.zeros(count * voice.HOP)
    kept = samples[: len(padded)]
    padded[: len(kept)] = kept
    frames = padded.reshape(len(scene.symbols), voice.FRAMES_PER_SYMBOL, voice.HOP)
    loudness = np.mean(frames[:, list(voice.HOLD_FRAMES)] ** 2)
    for place, (symbol, own) in enumerate(zip(scene.symbols, frames, strict=True)):
        for frame in own[list(voice.HOLD_FRAMES)]:
            wrong = _wrong_tones(frame, symbol)
            if wrong:
                return f"symbol {place} is not {symbol!r}: {wrong}"
        silence = np.mean(own[voice.SILENCE_FRAME] ** 2)
        if silence > loudness * 10 ** (SILENCE_DB / 10):
            return f"no silence after symbol {place}"
    return ""


def _wrong_tones(frame: np.ndarray, symbol: str) -> str:
    """Say why a hold frame does not sound as the symbol; empty if it does."""
    total = float(np.mean(frame**2))
    if total <= 1e-8:
        return "silent"
    powers = tone_powers(frame)
    pair = voice.TONE_PAIRS[symbol]
    own = [powers[tone] for tone in pair]
    loudest_other = max(power for tone, power in powers.items() if tone not in pair)
    if sum(own) < PAIR_SHARE * total:
        return f"its tones hold {sum(own) / total:.2f} of the energy"
    if min(own) < loudest_other * 10 ** (TONE_MARGIN_DB / 10):
        return f"another tone is less than {TONE_MARGIN_DB:g} dB below"
    return ""


def tone_powers(frame: np.ndarray) -> dict[float, float]:
    """Mean power of each grid tone in one frame of 128 samples: a DFT at the tones' own frequencies (Goertzel).

    The tones have whole cycles a frame and are orthogonal, so the powers of all tones add up to at most the frame's own.
    """
    time = np.arange(voice.HOP) / voice.SAMPLE_RATE
    bins = np.exp(-2j * np.pi * np.outer(voice.GRID, time)) @ frame
    return dict(zip(voice.GRID, (2 * np.abs(bins / voice.HOP) ** 2).tolist(), strict=True))


def _pixels(image: bytes | np.ndarray) -> np.ndarray:
    if isinstance(image, bytes):
        with Image.open(BytesIO(image)) as opened:
            return np.asarray(opened.convert("RGB"))
    return image


def _samples(audio: bytes | tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    if isinstance(audio, bytes):
        samples, rate = sound.decoded(audio)
        return samples.astype(np.float64).mean(axis=0), rate
    samples = np.asarray(audio[0], dtype=np.float64)
    return (samples.mean(axis=1) if samples.ndim == 2 else samples), int(audio[1])

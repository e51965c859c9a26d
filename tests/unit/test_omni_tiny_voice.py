"""The graders of text and sound: the right words pass, every kind of wrong answer fails."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pytest
import soundfile

from omnibus.omni_tiny.vocabulary import CODES, SYMBOLS
from tools.omni_tiny.grading import grade_audio, grade_text, tone_powers
from tools.omni_tiny.grammar import all_scenes, parse
from tools.omni_tiny.voice import GRID, HOP, SAMPLE_RATE, TONE_PAIRS, codes_of, frame_waveforms, waveform_of

pytestmark = pytest.mark.unit

PROMPT = "draw a red circle left of a blue square"
SYMBOLS_OF_PROMPT = parse(PROMPT).symbols


def spoken(symbols: Sequence[str]) -> tuple[np.ndarray, int]:
    return waveform_of(codes_of(symbols)), SAMPLE_RATE


@pytest.mark.parametrize("sentence", ["a red circle", PROMPT, "a white cross above a white square"])
def test_right_when_the_sound_is_the_truth(sentence: str) -> None:
    verdict = grade_audio(sentence, spoken(parse(sentence).symbols))
    assert verdict.ok, verdict.reason


def test_right_when_the_sound_is_a_wav_file() -> None:
    stream = BytesIO()
    soundfile.write(stream, *spoken(SYMBOLS_OF_PROMPT), format="WAV", subtype="PCM_16")
    assert grade_audio(PROMPT, stream.getvalue())


def test_wrong_when_any_two_symbols_are_swapped() -> None:
    for place in range(5):
        swapped = list(SYMBOLS_OF_PROMPT)
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        assert not grade_audio(PROMPT, spoken(swapped))


def test_wrong_when_any_symbol_is_dropped_or_repeated() -> None:
    for place in range(6):
        before, after = SYMBOLS_OF_PROMPT[:place], SYMBOLS_OF_PROMPT[place + 1 :]
        assert not grade_audio(PROMPT, spoken([*before, *after]))
        assert not grade_audio(PROMPT, spoken([*before, *SYMBOLS_OF_PROMPT[place : place + 1] * 2, *after]))
        if after:
            assert not grade_audio(PROMPT, spoken([*before, after[0], *after]))


def test_wrong_when_any_symbol_is_another() -> None:
    for place, symbol in enumerate(SYMBOLS_OF_PROMPT):
        for other in set(SYMBOLS) - {symbol}:
            changed = [*SYMBOLS_OF_PROMPT[:place], other, *SYMBOLS_OF_PROMPT[place + 1 :]]
            assert not grade_audio(PROMPT, spoken(changed)), (place, other)


def test_wrong_when_only_the_prompt_differs() -> None:
    for sentence in ("a red circle", "a red circle right of a blue square", "a blue square left of a red circle"):
        assert not grade_audio(sentence, spoken(SYMBOLS_OF_PROMPT))


def test_wrong_when_the_sound_clips() -> None:
    samples, rate = spoken(SYMBOLS_OF_PROMPT)
    assert "clips" in grade_audio(PROMPT, (np.clip(samples * 2.5, -1, 1), rate)).reason


def test_wrong_when_there_is_noise() -> None:
    samples, rate = spoken(SYMBOLS_OF_PROMPT)
    noise = np.random.default_rng(0).normal(size=len(samples))
    assert grade_audio(PROMPT, (samples + 0.002 * noise, rate))
    assert "silence" in grade_audio(PROMPT, (samples + 0.02 * noise, rate)).reason
    held = 0.5 * samples + 0.1 * noise * (np.abs(samples) > 0)
    assert "energy" in grade_audio(PROMPT, (held, rate)).reason


def test_wrong_when_another_tone_of_the_grid_sounds_with_the_pair() -> None:
    samples, rate = spoken(SYMBOLS_OF_PROMPT)
    hum = 0.12 * np.sin(2 * np.pi * 937.5 * np.arange(len(samples)) / rate) * (np.abs(samples) > 0)
    assert "dB" in grade_audio(PROMPT, (samples + hum, rate)).reason


def test_wrong_when_length_rate_or_file_are() -> None:
    samples, rate = spoken(SYMBOLS_OF_PROMPT)
    assert grade_audio(PROMPT, (samples[:-HOP], rate))
    assert "frames" in grade_audio(PROMPT, (samples[: -2 * HOP], rate)).reason
    assert "frames" in grade_audio(PROMPT, (np.append(samples, np.zeros(2 * HOP)), rate)).reason
    assert "samples a second" in grade_audio(PROMPT, (samples, 16000)).reason
    assert "not a sound" in grade_audio(PROMPT, b"no wav").reason
    assert not grade_audio(PROMPT, (np.zeros_like(samples), rate))


def test_tones_are_orthogonal_when_measured_in_one_frame() -> None:
    time = np.arange(HOP) / SAMPLE_RATE
    for tone in GRID:
        powers = tone_powers(np.sin(2 * np.pi * tone * time))
        assert powers[tone] == pytest.approx(0.5)
        assert max(power for other, power in powers.items() if other != tone) < 1e-20


def test_each_symbol_has_its_own_pair_when_there_are_sixteen() -> None:
    assert len(set(TONE_PAIRS.values())) == 16
    assert frame_waveforms().shape == (CODES, HOP) == (49, 128)


def test_text_is_right_when_and_only_when_it_is_the_canonical_description() -> None:
    assert grade_text(PROMPT, " red circle left blue square\n")
    for wrong in ("", "red circle", "blue circle left red square", "red circle right blue square", "red red circle"):
        assert not grade_text(PROMPT, wrong)
    assert all(grade_text(scene.text.replace("left", "left of").replace("right", "right of"), scene.text)
               for scene in all_scenes()[::17])  # fmt: skip

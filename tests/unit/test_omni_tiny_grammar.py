"""The grammar: sentences to scenes and back, and the scenes that training never sees."""

from __future__ import annotations

import numpy as np
import pytest

from omnibus.omni_tiny.vocabulary import END, SYMBOLS
from tools.omni_tiny.grammar import (
    Scene,
    Thing,
    UnparseableSentence,
    all_scenes,
    held_out,
    parse,
    phrase,
    sample_prompts,
    training_scenes,
)

pytestmark = pytest.mark.unit

RED_CIRCLE, BLUE_SQUARE = Thing("red", "circle"), Thing("blue", "square")


def test_every_scene_is_read_back_when_phrased_in_any_way() -> None:
    rng = np.random.default_rng(0)
    assert all(parse(phrase(scene, rng)) == scene for scene in all_scenes() for _ in range(3))


@pytest.mark.parametrize(
    ("sentence", "scene"),
    [
        ("draw a red circle left of a blue square", Scene(RED_CIRCLE, "left", BLUE_SQUARE)),
        ("  Draw a RED circle,  to the right of a blue square! ", Scene(RED_CIRCLE, "right", BLUE_SQUARE)),
        ("a red circle on top of the blue square.", Scene(RED_CIRCLE, "above", BLUE_SQUARE)),
        ("red circle under blue square please", Scene(RED_CIRCLE, "below", BLUE_SQUARE)),
        ("an orange cross", Scene(Thing("orange", "cross"))),
    ],
)
def test_the_scene_is_right_when_people_write_freely(sentence: str, scene: Scene) -> None:
    assert parse(sentence) == scene


@pytest.mark.parametrize(
    "sentence",
    [
        "", "hello", "draw a pink circle", "draw a red hexagon", "a red circle near a blue square", "red",
        "a red circle left of", "a red circle a blue square", "a red circle left of a blue square above a red cross",
        "a red circle and so on", "a red circle left of a red circle", "a red circle " * 100,
    ],
)  # fmt: skip
def test_a_typed_error_when_the_sentence_is_not_a_scene(sentence: str) -> None:
    with pytest.raises(UnparseableSentence):
        parse(sentence)


def test_symbols_are_canonical_when_a_scene_has_one_or_two_things() -> None:
    assert Scene(RED_CIRCLE).symbols == ("red", "circle", END)
    assert Scene(RED_CIRCLE, "left", BLUE_SQUARE).symbols == ("red", "circle", "left", "blue", "square", END)
    assert Scene(RED_CIRCLE, "left", BLUE_SQUARE).text == "red circle left blue square"
    assert len(SYMBOLS) == 16


def test_a_tenth_is_held_out_when_training_scenes_are_asked_for() -> None:
    assert len(held_out()) == pytest.approx(len(all_scenes()) / 10, abs=2)
    assert held_out().isdisjoint(training_scenes())
    assert len(held_out()) + len(training_scenes()) == len(all_scenes())


def test_a_picture_is_held_out_in_both_descriptions_when_it_is_held_out() -> None:
    assert all(scene.mirrored in held_out() for scene in held_out())


def test_prompts_are_the_same_when_the_seed_is_the_same() -> None:
    assert sample_prompts(16, 7) == sample_prompts(16, 7)
    assert sample_prompts(16, 7) != sample_prompts(16, 8)


def test_half_the_prompts_are_held_out_when_neither_part_is_chosen() -> None:
    scenes = [parse(prompt) for prompt in sample_prompts(64, 0)]
    assert sum(scene in held_out() for scene in scenes) == 32
    assert len(set(scenes)) == 64
    assert all(parse(prompt) in held_out() for prompt in sample_prompts(20, 0, held_out=True))


def test_a_value_error_when_more_prompts_than_scenes_are_asked_for() -> None:
    with pytest.raises(ValueError, match="exist"):
        sample_prompts(1000, 0, held_out=True)

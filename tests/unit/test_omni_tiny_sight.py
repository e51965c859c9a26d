"""The grader of pictures: right pictures pass, every kind of wrong one fails."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from omnibus.omni_tiny.vocabulary import COLOURS, RELATIONS, SHAPES
from tools.omni_tiny.drawing import BACKGROUND, draw
from tools.omni_tiny.grading import grade_image
from tools.omni_tiny.grammar import Scene, Thing, UnparseableSentence, all_scenes, parse

pytestmark = pytest.mark.unit

PROMPT = "draw a red circle left of a blue square"
SCENE = parse(PROMPT)


def test_right_when_the_picture_is_the_truth() -> None:
    rng = np.random.default_rng(0)
    scenes = [all_scenes()[i] for i in rng.choice(len(all_scenes()), size=200, replace=False)]
    wrong = [scene.text for scene in scenes if not grade_image(_prompt(scene), draw(scene, rng))]
    assert wrong == []


def test_right_when_the_picture_is_an_encoded_png() -> None:
    assert grade_image(PROMPT, _png(draw(SCENE)))


def test_right_when_the_picture_is_slightly_noisy_and_soft() -> None:
    rng = np.random.default_rng(1)
    small = Image.fromarray(draw(SCENE, rng)).resize((48, 48), Image.Resampling.BILINEAR)
    soft = np.asarray(small.resize((64, 64), Image.Resampling.BILINEAR)).astype(float)
    assert grade_image(PROMPT, np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("colour", [colour for colour in COLOURS if colour != "red"])
def test_wrong_when_a_colour_differs(colour: str) -> None:
    assert not grade_image(PROMPT, draw(replace(SCENE, first=Thing(colour, "circle"))))
    assert not grade_image(f"a {colour} cross", draw(Scene(Thing("red", "cross"))))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "square"])
def test_wrong_when_a_shape_differs(shape: str) -> None:
    assert not grade_image(PROMPT, draw(replace(SCENE, second=Thing("blue", shape))))


@pytest.mark.parametrize("relation", [relation for relation in RELATIONS if relation != "left"])
def test_wrong_when_the_relation_differs(relation: str) -> None:
    assert not grade_image(PROMPT, draw(replace(SCENE, relation=relation)))


def test_wrong_when_colours_or_shapes_are_swapped() -> None:
    assert not grade_image(PROMPT, draw(Scene(Thing("blue", "circle"), "left", Thing("red", "square"))))
    assert not grade_image(PROMPT, draw(Scene(Thing("red", "square"), "left", Thing("blue", "circle"))))


def test_wrong_when_a_thing_is_missing_or_added() -> None:
    assert not grade_image(PROMPT, draw(Scene(SCENE.first)))
    assert not grade_image("a red circle", draw(SCENE))
    three = draw(SCENE).copy()
    three[4:16, 26:38] = (40, 170, 70)
    assert not grade_image(PROMPT, three)


def test_wrong_when_the_picture_is_empty_noise_or_half_a_thing() -> None:
    empty = np.full((64, 64, 3), BACKGROUND, dtype=np.uint8)
    assert not grade_image(PROMPT, empty)
    assert not grade_image(PROMPT, np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8))
    half = draw(SCENE).copy()
    half[:32, :32] = BACKGROUND
    assert not grade_image(PROMPT, half)


def test_wrong_when_a_thing_has_two_colours() -> None:
    piebald = draw(SCENE).copy()
    inside = (piebald == (220, 40, 40)).all(axis=-1)
    inside[:32] = False
    piebald[inside] = (245, 230, 60)
    assert not grade_image(PROMPT, piebald)


def test_wrong_when_the_size_or_the_file_is() -> None:
    assert not grade_image(PROMPT, np.zeros((32, 32, 3), dtype=np.uint8))
    assert "not a picture" in grade_image(PROMPT, b"no png").reason


def test_a_typed_error_when_the_prompt_is_outside_the_grammar() -> None:
    with pytest.raises(UnparseableSentence):
        grade_image("draw a house", draw(SCENE))


def _prompt(scene: Scene) -> str:
    if scene.relation is None or scene.second is None:
        return f"a {scene.first.colour} {scene.first.shape}"
    words = {"left": "left of", "right": "right of"}.get(scene.relation, scene.relation)
    return f"a {scene.first.colour} {scene.first.shape} {words} a {scene.second.colour} {scene.second.shape}"


def _png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()

"""The film of a picture and its grader: right films pass, every kind of wrong one fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from omnibus.errors import EngineRejected
from omnibus.media import video
from omnibus.omni_tiny import clip
from omnibus.wire.request import Request
from omnibus.workers.engines.chunk_joining import joined
from omnibus.workers.engines.protocol import Chunk, StageInput
from tools.omni_tiny.drawing import draw
from tools.omni_tiny.grading import grade_video
from tools.omni_tiny.grammar import Scene, all_scenes, parse
from tools.omni_tiny.tokens import canonical_ids

pytestmark = pytest.mark.unit

PROMPT = "draw a red circle left of a blue square"
SCENE = parse(PROMPT)
LENGTH = {"num_frames": 12, "fps": 8}


def filmed(scene: Scene, sampling: Mapping[str, Any] = LENGTH, *, seed: int = 0, pictures: int = 1) -> tuple[Any, Any]:
    drawn = np.stack([draw(scene, np.random.default_rng(seed + number)) for number in range(pictures)])
    sources = {"dit": {"image": drawn}, "thinker": {"token_ids": canonical_ids(scene.symbols)}}
    made = list(clip.film(StageInput(rid="r", request=Request(prompt=scene.text), sources=sources), sampling))
    if pictures > 1:
        (outputs,) = made
        return outputs["video"], outputs["fps"]
    whole = joined([chunk for chunk in made if isinstance(chunk, Chunk)], {"video": "video", "fps": "json"})
    return whole["video"][None], whole["fps"]


def prompt_of(scene: Scene) -> str:
    first = f"a {scene.first.colour} {scene.first.shape}"
    if scene.relation is None or scene.second is None:
        return first
    words = {"left": "left of", "right": "right of"}.get(scene.relation, scene.relation)
    return f"{first} {words} a {scene.second.colour} {scene.second.shape}"


def graded(frames: np.ndarray, prompt: str = PROMPT) -> Any:
    return grade_video(prompt, video.encoded(frames, 8.0))


def test_right_when_the_film_is_of_the_right_picture() -> None:
    rng = np.random.default_rng(0)
    scenes = [all_scenes()[i] for i in (*range(28), *rng.choice(len(all_scenes()), size=32, replace=False))]
    grades = {scene.text: graded(filmed(scene, seed=3)[0][0], prompt_of(scene)) for scene in scenes}
    assert {text: grade.reason for text, grade in grades.items() if not grade} == {}


@pytest.mark.parametrize("scene", ["a red cross", PROMPT, "a red cross below a white circle"])
@pytest.mark.parametrize("fault", ["still", "backwards", "sudden", "mirrored", "short", "swapped"])
def test_wrong_when_the_motion_is_another(scene: str, fault: str) -> None:
    frames = filmed(parse(scene))[0][0]
    picture = frames[-1]
    wrong = {
        "still": np.repeat(picture[None], 12, axis=0),
        "backwards": frames[::-1],
        "sudden": np.concatenate([np.repeat(frames[:1], 9, axis=0), frames[-3:]]),
        "mirrored": clip.frames_of(picture, "above" if parse(scene).relation != "above" else "left", 12),
        "short": frames[:: len(frames) // 4],
        "swapped": np.roll(frames, 3, axis=0),
    }[fault]
    wrong[-1] = picture
    assert not graded(wrong, scene)


def test_wrong_when_another_thing_comes_in() -> None:
    frames = filmed(SCENE)[0][0].copy()
    frames[:8, :, :32] = filmed(parse("a green circle left of a blue square"))[0][0][:8, :, :32]
    assert "another thing" in graded(frames).reason


def test_wrong_when_the_picture_is_another_or_there_is_none() -> None:
    assert "its last frame" in graded(filmed(parse("a red circle left of a green square"))[0][0]).reason
    assert "not a video" in grade_video(PROMPT, b"nothing").reason


def test_film_ends_with_the_picture_and_has_one_for_each() -> None:
    films, fps = filmed(SCENE, {"num_frames": 5, "fps": 10}, pictures=2)
    assert (films.shape, fps) == ((2, 5, 64, 64, 3), 10)
    np.testing.assert_array_equal(films[1][-1], draw(SCENE, np.random.default_rng(1)))


def test_seconds_count_before_frames_when_both_are_there() -> None:
    films, fps = filmed(SCENE, {**LENGTH, "seconds": 2, "fps": 6, "seed": 4, "width": 64})
    assert (films.shape[1], fps) == (12, 6)


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"num_frames": 1}, "num_frames"),
        ({"num_frames": "12"}, "num_frames"),
        ({"num_frames": 97}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"seconds": 0.1}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"seconds": 96}, "seconds"),
        ({"height": 128}, "height"),
        ({"num_inference_steps": 3}, "num_inference_steps"),
    ],
)
def test_wrong_parameter_is_refused_by_its_name(sampling: Mapping[str, Any], param: str) -> None:
    with pytest.raises(EngineRejected) as refused:
        filmed(SCENE, {**LENGTH, **sampling})
    assert refused.value.param == param


@pytest.mark.parametrize(("sentence", "relation"), [("a red circle", None), (PROMPT, "left")])
def test_relation_is_read_from_the_thinkers_words(sentence: str, relation: str | None) -> None:
    assert clip.relation_of(canonical_ids(parse(sentence).symbols)) == relation
    assert clip.relation_of([1]) is None

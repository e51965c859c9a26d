"""Requests to diffusion pipelines, checked without any engine; and the choice of those that share a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnibus.errors import EngineRejected
from omnibus.media import pictures, sound, video
from omnibus.wire.request import AudioPart, ImagePart, Message, Part, Request, TextPart, VideoPart
from omnibus.workers.engines.diffusers.batch_request import PipelineRequest, parse_request
from omnibus.workers.engines.diffusers.batching import Batch, Waiting, choose
from omnibus.workers.engines.diffusers.signature import PipelineShape
from omnibus.workers.engines.protocol import EngineInput, Job, StageInput

pytestmark = pytest.mark.unit


def parsed(
    given: EngineInput, sampling: dict[str, Any], shape: PipelineShape, lora: str | None = None
) -> PipelineRequest:
    request = Request(prompt="of the request", lora=lora)
    job = Job(rid="r", stage_input=StageInput(rid="r", request=request), engine_input=given, sampling=sampling)
    return parse_request(job, shape)


SHAPE = PipelineShape(
    name="Painter",
    parameters=dict.fromkeys(
        ("prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "eta")
    ),
    has_text=True,
    can_preview=True,
    max_images=4,
    max_pixels=1 << 20,
)
EMBEDDED = PipelineShape(
    name="Embedded",
    parameters=dict.fromkeys(("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "pooled_prompt_embeds")),
    has_text=False,
    can_preview=False,
    max_images=4,
    max_pixels=1 << 20,
)


def test_prompt_is_taken_from_messages_when_there_is_no_text() -> None:
    chat = (
        Message(role="user", content=(TextPart(text="a circle"),)),
        Message(role="assistant", content="which colour?"),
        Message(role="user", content="red"),
    )

    assert parsed(EngineInput(messages=chat), {}, SHAPE).prompt == "a circle\nred"


def test_seeds_are_drawn_when_none_is_given() -> None:
    first, second = (parsed(EngineInput(text="x"), {"n": 2}, SHAPE).seeds for _ in range(2))

    assert first[1] == first[0] + 1
    assert first != second


@pytest.mark.parametrize(
    ("sampling", "same"),
    [
        ({}, True),
        ({"seed": 3}, True),
        ({"eta": 0.5}, False),
        ({"size": "64x32"}, False),
        ({"negative_prompt": "x"}, False),
    ],
)
def test_requests_share_a_batch_only_when_they_agree(sampling: dict[str, Any], same: bool) -> None:
    plain = parsed(EngineInput(text="a"), {"size": "64x64"}, SHAPE)
    other = parsed(EngineInput(text="b"), {"size": "64x64", **sampling}, SHAPE)

    assert (plain.key() == other.key()) is same


def embeddings(length: int, width: int = 8) -> EngineInput:
    return EngineInput(values={"prompt_embeds": np.zeros((length, width), np.float32)})


def test_lengths_may_differ_in_a_batch_when_there_is_a_mask() -> None:
    short, long, wide = (parsed(given, {}, EMBEDDED) for given in (embeddings(3), embeddings(5), embeddings(3, 9)))

    assert short.tensors["prompt_embeds_mask"].tolist() == [1, 1, 1]
    assert short.key() == long.key()
    assert short.key() != wide.key()


def test_lengths_may_not_differ_in_a_batch_when_there_is_no_mask() -> None:
    maskless = PipelineShape(
        **{**{f: getattr(EMBEDDED, f) for f in EMBEDDED.__slots__}, "parameters": {"prompt_embeds": None}}
    )

    assert parsed(embeddings(3), {}, maskless).key() != parsed(embeddings(5), {}, maskless).key()


@pytest.mark.parametrize(
    ("sampling", "param"), [({"negative_prompt": "x"}, "negative_prompt"), ({"previews": 1}, "previews")]
)
def test_rejected_when_the_pipeline_cannot(sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineRejected) as caught:
        parsed(embeddings(3), sampling, EMBEDDED)
    assert caught.value.param == param


def test_rejected_when_the_prompt_is_empty() -> None:
    with pytest.raises(EngineRejected) as caught:
        parsed(EngineInput(text="  "), {}, SHAPE)
    assert caught.value.param == "prompt"


TYPED = PipelineShape(
    name="Typed", parameters=dict.fromkeys(("sigmas", "eta", "image", "prompt")), has_text=True, can_preview=False,
    max_images=4, max_pixels=64 * 64, types={"sigmas": list[float] | None, "eta": float | None, "image": np.ndarray | None},
)  # fmt: skip


def test_parameters_that_are_passed_through_have_the_types_that_the_pipeline_declares() -> None:
    request = parsed(EngineInput(text="a cat"), {"sigmas": [1, 0.5], "eta": None}, TYPED)
    assert request.shared == {"sigmas": [1.0, 0.5], "eta": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [("sigmas", "abc"), ("sigmas", [1, "a"]), ("sigmas", [0.5] * 1001), ("eta", "x"), ("eta", True), ("image", [1])],
)
def test_rejected_naming_the_field_when_a_passed_through_value_is_of_another_type(name: str, value: object) -> None:
    with pytest.raises(EngineRejected) as caught:
        parsed(EngineInput(text="a cat"), {name: value}, TYPED)
    assert caught.value.param == name


def editor(name: str = "Editor", *more: str, **facts: Any) -> PipelineShape:
    taken = ("image", "mask_image", "control_image", "ip_adapter_image", "strength", "prompt", "height", "width", *more)
    return PipelineShape(name=name, parameters=dict.fromkeys(taken), has_text=True, **facts)


MOVIES = PipelineShape(
    name="Movies",
    parameters={
        "prompt": None,
        "num_frames": 81,
        "height": 480,
        "width": 832,
        "video": None,
        "num_videos_per_prompt": 1,
    },
    has_text=True,
    frames_ratio=4,
    max_frames=200,
)
SONGS = PipelineShape(
    name="Songs",
    parameters=dict.fromkeys(("prompt", "src_audio", "reference_audio", "audio_duration")),
    has_text=True,
    sample_rate=16_000,
)
PNG = pictures.encoded(np.full((8, 16, 3), 200, np.uint8))
MP4 = video.encoded(np.zeros((5, 16, 16, 3), np.uint8), 8)
WAV = sound.encoded(np.zeros((2, 800), np.float32), 8000)


def chat(*parts: Part, text: str = "make it blue") -> EngineInput:
    return EngineInput(messages=(Message(role="user", content=(*parts, TextPart(text=text))),))


def test_files_are_the_arguments_that_they_are_named_for() -> None:
    clear = np.zeros((8, 16, 4), np.uint8)
    clear[:, :8, 3] = 255
    parts = [ImagePart(data=PNG), ImagePart(data=pictures.encoded(clear), argument="mask")]

    media = parsed(chat(*parts), {"strength": 0.5}, editor()).media

    assert media["image"].size == (16, 8)
    assert media["image"].mode == "RGB"
    # What is transparent is painted anew: white in a mask.
    np.testing.assert_array_equal(np.asarray(media["mask_image"]), np.where(clear[..., 3], 0, 255))


def test_opaque_mask_counts_by_its_brightness() -> None:
    half = np.zeros((8, 8), np.uint8)
    half[4:] = 255
    part = ImagePart(data=pictures.encoded(half), argument="mask_image")
    np.testing.assert_array_equal(np.asarray(parsed(chat(part), {}, editor()).media["mask_image"]), half)


def test_pictures_are_a_list_when_the_class_takes_several() -> None:
    media = parsed(chat(ImagePart(data=PNG), ImagePart(data=PNG)), {}, editor("QwenImageEditPlusPipeline")).media
    assert [one.size for one in media["image"]] == [(16, 8)] * 2
    hinted = editor("Flux2Pipeline", types={"image": list[Image.Image] | Image.Image | None})
    assert len(parsed(chat(ImagePart(data=PNG)), {}, hinted).media["image"]) == 1


@pytest.mark.parametrize(
    ("parts", "shape", "param", "message"),
    [
        ([ImagePart(data=PNG)], SHAPE, "messages[0].content[0].image", "Painter takes no image"),
        ([ImagePart(data=PNG)] * 2, editor(), "messages[0].content[1].image", "control_image, mask_image"),
        (
            [ImagePart(data=PNG, argument="depth")],
            editor(),
            "messages[0].content[0].image",
            "takes no image as 'depth'",
        ),
        (
            [ImagePart(data=PNG, argument="ip_adapter_image")],
            editor(),
            "messages[0].content[0].image",
            "takes no image as",
        ),
        ([ImagePart(data=PNG)], editor(max_pixels=100), "messages[0].content[0].image", "100 pixels"),
        ([VideoPart(data=MP4)], editor(), "messages[0].content[0].video", "takes no video"),
        ([AudioPart(data=WAV)], MOVIES, "messages[0].content[0].audio", "takes no audio"),
    ],
)
def test_file_is_refused_by_its_place_when_the_class_does_not_take_it(
    parts: list[Part], shape: PipelineShape, param: str, message: str
) -> None:
    with pytest.raises(EngineRejected, match=message) as caught:
        parsed(chat(*parts), {}, shape)
    assert caught.value.param == param


def test_video_is_its_frames_and_a_sound_has_the_rate_of_the_pipeline() -> None:
    frames = parsed(chat(VideoPart(data=MP4)), {}, MOVIES).media["video"]
    samples = parsed(chat(AudioPart(data=WAV, argument="reference_audio")), {}, SONGS).media["reference_audio"]

    assert [frame.size for frame in frames] == [(16, 16)] * 5
    assert samples.shape == (2, 1600)


def test_outputs_of_an_earlier_stage_are_files_too() -> None:
    drawn = EngineInput(values={"image": np.zeros((1, 8, 16, 3), np.uint8)})
    played = EngineInput(values={"audio": np.zeros((2, 800), np.float32), "sample_rate": 8000})

    request = parsed(drawn, {}, editor())

    assert request.media["image"].size == (16, 8)
    assert request.prompt == "of the request"
    assert parsed(played, {}, SONGS).media["src_audio"].shape == (2, 1600)
    with pytest.raises(EngineRejected, match="takes one file as 'image', not 2"):
        parsed(EngineInput(values={"image": np.zeros((2, 8, 16, 3), np.uint8)}), {}, editor())
    with pytest.raises(EngineRejected, match="uint8"):
        parsed(EngineInput(values={"image": np.zeros((8, 16, 3), np.float32)}), {}, editor())


def test_requests_with_files_share_no_batch() -> None:
    one, other = (parsed(chat(ImagePart(data=PNG)), {"seed": 1}, editor()) for _ in range(2))
    assert one.key() != other.key()


def test_prompt_may_be_left_out_beside_a_file_and_is_refused_where_the_class_has_none() -> None:
    assert parsed(chat(ImagePart(data=PNG), text=""), {}, editor()).prompt == ""
    variations = PipelineShape(name="Variations", parameters={"image": None}, has_text=False)
    assert parsed(chat(ImagePart(data=PNG), text=""), {}, variations).prompt is None
    with pytest.raises(EngineRejected, match="takes no prompt") as caught:
        parsed(chat(ImagePart(data=PNG)), {}, variations)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("sampling", "shared", "fps", "pixels"),
    [
        ({}, {}, 16, 832 * 480 * 81),
        ({"seconds": 2, "fps": 8, "size": "64x32"}, {"num_frames": 17, "width": 64, "height": 32}, 8, 64 * 32 * 17),
        ({"seconds": 0.01}, {"num_frames": 5}, 16, 832 * 480 * 5),
    ],
)
def test_length_of_a_video_is_asked_for_in_frames_or_seconds(
    sampling: dict[str, Any], shared: dict[str, Any], fps: float, pixels: int
) -> None:
    request = parsed(EngineInput(text="a cat"), sampling, MOVIES)
    assert (request.shared, request.fps, request.pixels) == (shared, fps, pixels)


def test_rate_goes_to_the_class_when_it_has_a_name_for_it() -> None:
    shape = PipelineShape(
        name="L", parameters={"prompt": None, "num_frames": 9, "frame_rate": 25}, has_text=True, fps=25
    )
    assert parsed(EngineInput(text="a"), {"fps": 10}, shape).shared == {"frame_rate": 10.0}
    assert parsed(EngineInput(text="a"), {"frame_rate": 12}, shape).fps == 12
    assert parsed(EngineInput(text="a"), {}, shape).shared == {"frame_rate": 25.0}


def test_length_of_a_sound_has_one_name_for_all_classes() -> None:
    assert parsed(EngineInput(text="jazz"), {"seconds": 3}, SONGS).shared == {"audio_duration": 3.0}


@pytest.mark.parametrize(
    ("sampling", "shape", "param"),
    [
        ({"seconds": 3}, SHAPE, "seconds"),
        ({"seconds": -1}, MOVIES, "seconds"),
        ({"seconds": 60}, MOVIES, "num_frames"),
        ({"num_frames": 201}, MOVIES, "num_frames"),
        ({"num_frames": 0}, MOVIES, "num_frames"),
        ({"fps": 0}, MOVIES, "fps"),
        ({"fps": 12}, SHAPE, "fps"),
        ({"num_videos_per_prompt": 2}, MOVIES, "num_videos_per_prompt"),
        ({"strength": 1.5}, editor(), "strength"),
        ({"image": "x.png"}, editor(), "image"),
        ({"lora_scale": 0.5}, SHAPE, "lora_scale"),
    ],
)
def test_rejected_naming_the_field_when_the_class_cannot(
    sampling: dict[str, Any], shape: PipelineShape, param: str
) -> None:
    with pytest.raises(EngineRejected) as caught:
        parsed(EngineInput(text="a cat"), sampling, shape)
    assert caught.value.param == param


def test_adapter_and_scale_keep_requests_apart() -> None:
    shape = editor(adapters=frozenset({"ink", "oil"}))
    plain, ink = (parsed(EngineInput(text="a"), {}, shape, lora=lora) for lora in (None, "ink"))
    soft = parsed(EngineInput(text="a"), {"lora_scale": 0.5}, shape, lora="ink")

    assert (plain.adapter, ink.adapter, soft.adapter) == (None, ("ink", 1.0), ("ink", 0.5))
    assert len({str(one.key()) for one in (plain, ink, soft)}) == 3
    assert parsed(EngineInput(text="a"), {}, shape, lora="of another stage").adapter is None


def queue(*requests: tuple[str, int, int]) -> list[Waiting]:
    """Requests as (key, rows, pixels of one), each a bundle of its own."""
    return [
        Waiting(key=key, bundle=str(place), rows=rows, pixels=pixels)
        for place, (key, rows, pixels) in enumerate(requests)
    ]


@pytest.mark.parametrize(
    ("waiting", "budget", "members", "is_full"),
    [
        ([], None, (), False),
        ([("a", 1, 64)], None, (0,), False),
        ([("a", 1, 64)] * 5, None, (0, 1, 2, 3), True),
        # Small ones are more than large ones.
        ([("a", 1, 64)] * 8, 512, (0, 1, 2, 3, 4, 5, 6, 7), True),
        ([("a", 1, 256)] * 8, 512, (0, 1), True),
        # One larger than the budget runs alone, and the oldest goes first whatever it is.
        ([("a", 1, 1024), ("b", 1, 64)], 512, (0,), True),
        ([("a", 1, 64), ("b", 1, 64), ("a", 1, 64)], 512, (0, 2), False),
        # A later one that would fit does not pass an earlier one that does not.
        ([("a", 6, 64), ("a", 4, 64), ("a", 1, 64)], 512, (0,), True),
    ],
)
def test_batch_is_of_the_oldest_and_those_like_it_within_the_budget(
    waiting: list[tuple[str, int, int]], budget: int | None, members: tuple[int, ...], is_full: bool
) -> None:
    assert choose(queue(*waiting), slots=4, budget=budget) == Batch(members=members, is_full=is_full)


def test_bundle_is_not_parted_when_it_is_beyond_the_budget() -> None:
    waiting = [Waiting(key="a", bundle=bundle, pixels=64) for bundle in ("x", "x", "x", "y")]
    assert choose(waiting, slots=1, budget=64).members == (0, 1, 2)


def test_batch_does_not_wait_when_every_slot_is_there_already() -> None:
    assert choose(queue(("a", 1, 64), ("b", 1, 64)), slots=2, budget=1 << 20).is_full


@pytest.mark.parametrize(
    ("parameters", "sampling", "why"),
    [
        ({"guidance_scale": 4.5}, {"guidance_scale": 1}, "guidance_scale=1"),
        ({"guidance_scale": 4.5}, {"guidance_scale": 0.5}, "guidance_scale=0.5"),
        ({"guidance_scale": 1.0}, {}, "guidance_scale=1"),
        ({"true_cfg_scale": 1.0, "guidance_scale": 3.5}, {}, "true_cfg_scale=1"),
    ],
)
def test_negative_prompt_is_refused_when_the_guidance_makes_no_use_of_it(
    parameters: dict[str, float], sampling: dict[str, Any], why: str
) -> None:
    shape = replace(SHAPE, parameters={"prompt": None, "negative_prompt": None, **parameters})
    with pytest.raises(EngineRejected, match=why) as caught:
        parsed(EngineInput(text="a"), {"negative_prompt": "b", **sampling}, shape)
    assert caught.value.param == "negative_prompt"
    guided = dict.fromkeys(parameters, 2.0)
    for fine in ({"negative_prompt": "b", **guided}, {"negative_prompt": " ", **sampling}, sampling):
        parsed(EngineInput(text="a"), fine, shape)

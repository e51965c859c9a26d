"""The outputs of a stage, and the input that the next one makes of them."""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.errors import EngineError, InvalidRequest
from omnibus.media import pictures, sound, video
from omnibus.payloads.packing import unpack
from omnibus.pipeline.route import Forwarding, Route, RouteStage, Target
from omnibus.pipeline.spec import StageSpec
from omnibus.wire import codec
from omnibus.wire.envelope import StageResult, Ticket
from omnibus.wire.payload import JSON, MP4, MSGPACK, PNG, TEXT, WAV, Payload
from omnibus.wire.request import Message, Request
from omnibus.workers.attempt_decision import following
from omnibus.workers.engines.protocol import StageInput
from omnibus.workers.job_builder import default_input, merged_sampling
from omnibus.workers.output_files import encoded
from tests.support.device_tensors import CudaTensor

pytestmark = pytest.mark.unit


def test_text_and_json_are_encoded() -> None:
    assert encoded("text", "hallo") == [(b"hallo", TEXT)]
    assert encoded("json", {"a": [1, 2]}) == [(b'{"a":[1,2]}', JSON)]
    assert encoded("json", {"a": np.arange(2), "b": np.float32(1.5)}) == [(b'{"a":[0,1],"b":1.5}', JSON)]


def test_outputs_are_those_of_the_host_when_they_are_tensors_on_a_gpu() -> None:
    pixels, samples = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.linspace(-1, 1, 80, dtype=np.float32)
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    assert encoded("image", CudaTensor(pixels)) == encoded("image", pixels)
    assert encoded("audio", CudaTensor(samples), 8000) == encoded("audio", samples, 8000)
    assert encoded("video", CudaTensor(frames), fps=8) == encoded("video", frames, fps=8)
    assert encoded("json", {"a": CudaTensor(np.arange(2))}) == [(b'{"a":[0,1]}', JSON)]


def test_batch_of_images_becomes_one_file_each() -> None:
    files = encoded("image", np.zeros((3, 4, 5, 3), dtype=np.uint8))
    assert [kind for _, kind in files] == [PNG] * 3
    assert Image.open(io.BytesIO(files[0][0])).size == (5, 4)


def test_files_pass_as_they_are_labelled_by_what_they_are() -> None:
    jpeg = pictures.converted(pictures.encoded(np.zeros((4, 5, 3), np.uint8)), "jpeg")
    mp3 = sound.encoded(np.zeros(4800, np.float32), 48_000, "mp3")
    assert encoded("image", jpeg) == [(jpeg, "image/jpeg")]
    assert encoded("audio", [mp3, mp3]) == [(mp3, "audio/mpeg")] * 2
    mp4 = video.encoded(np.zeros((3, 16, 16, 3), np.uint8), 8)
    assert encoded("video", mp4) == [(mp4, MP4)]
    assert encoded("speech3d", b"\x00") == [(b"\x00", "application/octet-stream")]


def test_files_of_several_formats_leave_in_one() -> None:
    png = pictures.encoded(np.zeros((4, 5, 3), np.uint8))
    files = encoded("image", [png, pictures.converted(png, "webp")])
    assert [kind for _, kind in files] == [PNG, PNG]
    assert [pictures.media_type(data) for data, _ in files] == [PNG, PNG]


def test_a_pillow_picture_becomes_a_file() -> None:
    ((data, kind),) = encoded("image", Image.new("RGB", (5, 4), "red"))
    assert (kind, Image.open(io.BytesIO(data)).size) == (PNG, (5, 4))


@pytest.mark.parametrize(
    "value", [{"samples": np.zeros(80, np.float32), "sample_rate": 8000}, np.zeros(80, np.float32)]
)
def test_sound_becomes_a_file_of_its_rate(value: Any) -> None:
    ((data, kind),) = encoded("audio", value, 8000)
    samples, rate = soundfile.read(io.BytesIO(data))
    assert (kind, rate, len(samples)) == (WAV, 8000, 80)


def test_frames_become_videos_with_the_sounds_made_beside_them() -> None:
    shades = np.linspace(0, 255, 32, dtype=np.uint8)
    clips = np.broadcast_to(shades[:, None], (2, 9, 16, 32, 3)).copy()
    tones = [np.sin(np.arange(8000) / rate)[None].repeat(2, axis=0) for rate in (3, 5)]

    files = encoded("video", clips, 16_000, fps=16, heard=tones)
    ((silent, _),) = encoded("video", clips[0], fps=12.5)

    assert [kind for _, kind in files] == [MP4, MP4]
    for (data, _), tone in zip(files, tones, strict=True):
        frames, fps = video.frames(data)
        assert (frames.shape, fps) == ((9, 16, 32, 3), 16)
        assert np.abs(frames.astype(int) - clips[0]).max() <= 4
        samples, rate = sound.decoded(data)
        assert (rate, len(samples)) == (16_000, 2)
        assert np.corrcoef(samples[0, :7000], tone[0, :7000])[0, 1] > 0.99
    assert video.frames(silent)[1] == 12.5
    with pytest.raises(InvalidRequest, match="no sound"):
        sound.decoded(silent)


@pytest.mark.parametrize("sides", [(16, 16), (15, 16), (17, 33)])
def test_video_keeps_its_size_when_a_side_is_odd(sides: tuple[int, int]) -> None:
    ((data, _),) = encoded("video", np.zeros((2, *sides, 3), np.uint8), fps=8)
    assert video.frames(data)[0].shape == (2, *sides, 3)


@pytest.mark.parametrize(
    ("modality", "value"),
    [
        ("audio", np.zeros(8, np.float32)),
        ("audio", {"samples": np.zeros(8), "sample_rate": "fast"}),
        ("audio", {"samples": np.zeros(0), "sample_rate": 8000}),
        ("audio", b"RIFF"),
        ("audio", []),
        ("image", b"\x89PNG"),
        ("image", b""),
        ("image", []),
        ("image", np.zeros((0, 4, 5, 3), np.uint8)),
        ("image", np.zeros((4, 5, 3), np.float32)),
        ("image", {"a": 1}),
        ("image", "a.png"),
        ("video", b"\0\0\0\x18ftypisom and so on"),
        ("video", np.zeros((3, 16, 16, 3), np.uint8)),
        ("video", np.zeros((16, 16, 3), np.uint8)),
        ("video", []),
        ("text", b"caf\xc3\xa9"),
        ("text", 5),
        ("text", None),
        ("json", object()),
    ],
)
def test_what_cannot_be_a_file_is_the_engines_fault(modality: str, value: Any) -> None:
    with pytest.raises(EngineError):
        encoded(modality, value)


def test_packed_values_come_back_as_they_were() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (unpack(codec.pack(array), MSGPACK) == array).all()
    assert unpack("grün".encode(), TEXT) == "grün"
    assert unpack(b"\x00", "application/octet-stream") == b"\x00"


def test_sampling_of_the_request_overrides_the_stage_by_id_and_name() -> None:
    stage = StageSpec(stage_id=1, name="dit", engine="sim", default_sampling_params={"a": 1, "b": 1, "c": 1})
    request = Request(prompt="x", sampling_params={"1": {"b": 2, "c": 2}, "dit": {"c": 3}, "other": {"a": 9}})
    assert merged_sampling(stage, request) == {"a": 1, "b": 2, "c": 3}


def test_default_input_of_a_first_stage_is_the_prompt_or_the_chat() -> None:
    assert default_input(StageInput(rid="r", request=Request(prompt="hi"))).text == "hi"
    assert default_input(StageInput(rid="r", request=Request(prompt=(1, 2)))).token_ids == (1, 2)
    chat = (Message(role="user", content="hi"),)
    assert default_input(StageInput(rid="r", request=Request(messages=chat))).messages == chat


def test_default_input_of_a_later_stage_is_what_its_sources_made() -> None:
    sources = {"thinker": {"text": "a", "hidden": 1}, "talker": {"token_ids": [1]}}
    made = default_input(StageInput(rid="r", request=Request(prompt="hi"), sources=sources))
    assert (made.text, made.token_ids, made.values["hidden"]) == ("a", [1], 1)


def result_with(*edges: Forwarding, final: str | None) -> StageResult:
    targets = tuple(Target(number, mode) for number, mode in enumerate(edges, 1))
    first = RouteStage(0, (), targets, final)
    route = Route((first, *(RouteStage(target.stage_id, (0,), (), "text") for target in targets)))
    ticket = Ticket(
        rid="r", pipeline="p", route=route, created=0.0, deadline=1.0, request=Payload.inline(b"", TEXT)
    )  # fmt: skip
    return StageResult(ticket=ticket, stage_id=0, replica="r0", outputs={"text": Payload.inline(b"x", TEXT)})


@pytest.mark.parametrize(
    ("edges", "final", "published"),
    [
        ([], "text", ["event.r.0.1"]),
        ([Forwarding.ORCHESTRATOR], None, ["event.r.0.1"]),
        ([Forwarding.DIRECT], None, ["task.r.1.1"]),
        ([Forwarding.DIRECT], "text", ["task.r.1.1", "event.r.0.1"]),
        ([Forwarding.DIRECT, Forwarding.ORCHESTRATOR], None, ["task.r.1.1", "event.r.0.1"]),
    ],
)
def test_direct_tasks_precede_the_event(edges: list[Forwarding], final: str | None, published: list[str]) -> None:
    effects = list(following(result_with(*edges, final=final)))
    assert [cast("Any", effect).msg_id for effect in effects] == published

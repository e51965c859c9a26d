"""Pictures that are edited, videos and sounds under diffusers, asked for over HTTP and by the Python client."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from openai import BadRequestError
from PIL import Image

from omnibus.broker.connection import Connection
from omnibus.client.request_events import Ended, OutputArrived, StepProgress
from omnibus.media import pictures, sound, video
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import ImagePart, Message, Request, TextPart
from tests.support import tiny_checkpoints, tiny_pipelines
from tests.support.diffusers_classes import mask, picture
from tests.support.front import Front, front

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0, "strength": 1.0}
SEEDED = {"seed": 5, **SAMPLING}
PNG = pictures.encoded(picture(16))
MASK = mask(16)
CLEAR = pictures.encoded(np.dstack([picture(16), 255 - MASK]))
"""The mask as OpenAI's clients send it: transparent where the picture is to be painted anew."""
MOVIE = {"num_inference_steps": 2, "num_frames": 5, "size": "32x32", "guidance_scale": 1.0, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], Path]], Path]:
    torch.set_num_threads(1)
    made: dict[object, Path] = {}

    def of(make: Callable[[Path], Path]) -> Path:
        if make not in made:
            made[make] = make(tmp_path_factory.mktemp("model"))
        return made[make]

    return of


@asynccontextmanager
async def serving(
    connection: Connection, name: str, model: Path, kind: str, modality: str | tuple[str, ...], **defaults: Any
) -> AsyncIterator[Front]:
    stage = StageSpec(
        stage_id=0, name="s", engine="diffusers", model=str(model), engine_args={"pipeline_class": kind}, slots=4,
        final_output=True, final_output_type=modality, default_sampling_params=defaults,
    )  # fmt: skip
    async with front(connection, PipelineSpec(name=name, deadline=60.0, stages=(stage,))) as made:
        yield made


def of_base64(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def painted_anew(model: Path) -> np.ndarray:
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        model, safety_checker=None, feature_extractor=None, image_encoder=None
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a red square", image=Image.fromarray(picture(16)), mask_image=Image.fromarray(MASK), height=16, width=16,
        generator=torch.Generator().manual_seed(5), output_type="np", **SAMPLING,
    ).images  # fmt: skip
    return (images[0] * 255).round().astype(np.uint8)


async def test_edit_is_that_of_the_pipeline_whoever_asks(connection: Connection, pipeline: str, folder: Any) -> None:
    model = folder(tiny_checkpoints.make_painter)
    expected = painted_anew(model)
    async with serving(connection, pipeline, model, "StableDiffusionInpaintPipeline", "image") as door:
        edited = await door.openai.images.edit(
            model=pipeline, image=PNG, mask=CLEAR, prompt="a red square", size="16x16", extra_body=SEEDED,  # type: ignore[call-overload]
        )  # fmt: skip
        parts = (ImagePart(data=PNG), ImagePart(data=CLEAR, argument="mask"), TextPart(text="a red square"))
        request = Request(
            messages=(Message(role="user", content=parts),), sampling_params={"s": {**SEEDED, "size": "16x16"}}
        )
        result = await (await door.producer.submit(door.spec, request)).result()
        urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (PNG, CLEAR)]
        chat = await door.openai.chat.completions.create(
            model=pipeline,
            messages=[{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": urls[0]}},
                {"type": "image_url", "image_url": {"url": urls[1]}, "argument": "mask_image"},  # type: ignore[typeddict-unknown-key]
                {"type": "text", "text": "a red square"},
            ]}],
            extra_body={"sampling_params": request.sampling_params},
        )  # fmt: skip
        with pytest.raises(BadRequestError) as maskless:
            await door.openai.images.edit(model=pipeline, image=PNG, prompt="a red square", extra_body=SEEDED)  # type: ignore[call-overload]
        with pytest.raises(BadRequestError) as fileless:
            await door.openai.images.generate(model=pipeline, prompt="a red square")
        with pytest.raises(BadRequestError) as odd:
            await door.openai.images.edit(
                model=pipeline, image=PNG, mask=CLEAR, prompt="a red square", size="15x17", extra_body=SEEDED,  # type: ignore[call-overload]
            )  # fmt: skip

    np.testing.assert_array_equal(of_base64(edited.data[0].b64_json), expected)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.outputs[0].items[0]))), expected)
    shown: Any = chat.choices[0].message.content
    np.testing.assert_array_equal(of_base64(shown[0]["image_url"]["url"].partition(",")[2]), expected)
    assert [caught.value.param for caught in (maskless, fileless, odd)] == ["mask", "image", "size"]
    assert "was given no image" in fileless.value.message


async def test_variations_and_streamed_edits_are_made_of_the_picture(
    connection: Connection, pipeline: str, folder: Any
) -> None:
    model = folder(tiny_checkpoints.make_painter)
    async with serving(connection, pipeline, model, "StableDiffusionImg2ImgPipeline", "image", **SAMPLING) as door:
        varied = await door.openai.images.create_variation(
            model=pipeline, image=PNG, n=2, response_format="b64_json", extra_body={"seed": 3}
        )
        stream = await door.openai.images.edit(
            model=pipeline, image=PNG, prompt="blue", stream=True, partial_images=1, extra_body={"seed": 3}
        )  # type: ignore[call-overload]
        events = [event async for event in stream]
        two = await door.http.post(
            "/v1/images/edits", files=[("image[]", PNG), ("image[]", PNG)], data={"model": pipeline, "prompt": "x"}
        )
        bad = await door.http.post(
            "/v1/images/edits", files=[("image", b"GIF")], data={"model": pipeline, "prompt": "x"}
        )
        json = await door.http.post("/v1/images/edits", json={"model": pipeline, "prompt": "x", "image": "a.png"})

    assert [of_base64(one.b64_json).shape for one in varied.data] == [(16, 16, 3)] * 2
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    errors = [answer.json()["error"] for answer in (two, bad, json)]
    assert [(error["param"], answer.status_code) for error, answer in zip(errors, (two, bad, json), strict=True)] == [
        ("image[1]", 400), ("image", 400), ("image", 400),
    ]  # fmt: skip
    assert "takes one file as 'image'" in errors[0]["message"]


async def test_picture_is_a_400_naming_it_when_the_class_takes_none(
    connection: Connection, pipeline: str, folder: Any
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    content = [{"type": "text", "text": "red"}, {"type": "image_url", "image_url": {"url": url}}]
    model = folder(tiny_checkpoints.make_painter)
    async with serving(connection, pipeline, model, "StableDiffusionPipeline", "image", num_inference_steps=2) as door:
        chat = await door.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
        edit = await door.http.post("/v1/images/edits", files={"image": PNG}, data={"prompt": "red"})
        fits = await door.openai.images.generate(model=pipeline, prompt="red", size="16x16")

    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "messages[0].content[1].image_url")
    assert (edit.status_code, edit.json()["error"]["param"]) == (400, "image")
    assert "takes no image" in edit.json()["error"]["message"]
    assert of_base64(fits.data[0].b64_json).shape == (16, 16, 3)


async def test_video_has_its_frames_and_its_sound_in_one_file(
    connection: Connection, pipeline: str, folder: Any
) -> None:
    model = folder(tiny_pipelines.make_ltx2)
    async with serving(connection, pipeline, model, "LTX2ImageToVideoPipeline", "video", **MOVIE) as door:
        body = {"model": pipeline, "prompt": "a robot dances", "fps": 10, "seed": 3}
        file = {"input_reference": ("a.png", pictures.encoded(picture(32)), "image/png")}
        answer = await door.http.post("/v1/videos/sync", data=body, files=file)
        url = f"data:image/png;base64,{base64.b64encode(pictures.encoded(picture(32))).decode()}"
        as_json = await door.http.post("/v1/videos/sync", json={**body, "input_reference": {"image_url": url}})
        content = [{"type": "text", "text": "a robot dances"}, {"type": "image_url", "image_url": {"url": url}}]
        chat = await door.http.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": content}], "sampling_params": {"s": {"fps": 10, "seed": 3}}},
        )
        submission = await door.producer.submit(
            door.spec,
            Request(
                messages=(
                    Message(role="user", content=(ImagePart(data=file["input_reference"][1]), TextPart(text="x"))),
                )
            ),
        )
        events = [event async for event in submission.events()]
        both = await door.http.post("/v1/videos/sync", json={**body, "seconds": 1, "num_frames": 9})
        absent = await door.http.post("/v1/videos/sync", json={"model": pipeline, "prompt": "x"})
        painting = await door.http.post("/v1/images/generations", json={"model": pipeline, "prompt": "x"})

    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4"), answer.text
    frames, fps = video.frames(answer.content)
    assert (frames.shape, fps) == ((5, 32, 32, 3), 10)
    assert sound.decoded(answer.content)[1] == 16_000
    assert as_json.content == answer.content
    (part,) = chat.json()["choices"][0]["message"]["content"]
    assert base64.b64decode(part["file"]["file_data"].partition(",")[2]) == answer.content
    assert [event.step for event in events if isinstance(event, StepProgress)] == [1, 2]
    assert isinstance(events[-1], Ended)
    assert (both.status_code, both.json()["error"]["param"]) == (400, "seconds")
    assert (absent.status_code, absent.json()["error"]["param"]) == (400, "input_reference")
    assert (painting.status_code, painting.json()["error"]["param"]) == (400, "model")


async def test_sound_of_a_diffusion_stage_leaves_by_the_speech_route(
    connection: Connection, pipeline: str, folder: Any
) -> None:
    model = folder(tiny_pipelines.make_stable_audio)
    sampling = {"num_inference_steps": 2, "seconds": 0.1}
    async with serving(connection, pipeline, model, "StableAudioPipeline", "audio", **sampling) as door:
        speech = await door.openai.audio.speech.create(
            model=pipeline, input="a hammer hits wood", voice="alloy", response_format="wav"
        )
        chat = await door.openai.chat.completions.create(
            model=pipeline, messages=[{"role": "user", "content": "a hammer"}], modalities=["audio"],
            extra_body={"sampling_params": {"s": {"n": 2}}},
        )  # fmt: skip

    samples, rate = sound.decoded(speech.content)
    assert (samples.shape, rate) == ((2, 800), 8000)
    assert chat.choices[0].message.audio is not None


async def test_several_outputs_of_one_stage_are_delivered_each_under_its_own_modality(
    connection: Connection, pipeline: str, folder: Any
) -> None:
    model = folder(tiny_pipelines.make_ltx2)
    asked = Request(prompt="a robot dances", sampling_params={"s": {"seed": 3}})
    async with serving(connection, pipeline, model, "LTX2Pipeline", ("video", "audio"), **MOVIE) as door:
        submission = await door.producer.submit(door.spec, asked)
        events = [event async for event in submission.events()]
        again = await door.producer.result(door.spec.name, submission.rid)
        chat = await door.openai.chat.completions.create(
            model=pipeline, messages=[{"role": "user", "content": "a robot dances"}],
            extra_body={"sampling_params": asked.sampling_params, "modalities": ["audio", "video"]},
        )  # fmt: skip
        speech = await door.http.post(
            "/v1/audio/speech", json={"input": "a robot dances", "seed": 3, "response_format": "wav"}
        )

    arrived = [event.output for event in events if isinstance(event, OutputArrived)]
    assert [output.modality for output in arrived] == ["video", "audio"]
    last = events[-1]
    assert isinstance(last, Ended)
    assert last.result.outputs == tuple(arrived) == again.outputs
    heard, rate = sound.decoded(arrived[1].items[0])
    assert (rate, len(heard)) == (16_000, 2)
    assert video.frames(arrived[0].items[0])[0].shape == (5, 32, 32, 3)
    assert chat.choices[0].message.audio is not None
    assert base64.b64decode(chat.choices[0].message.audio.data) == arrived[1].items[0]
    assert speech.content == arrived[1].items[0]

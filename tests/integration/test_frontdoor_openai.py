"""The routes through the unmodified `openai` package, over a real port and a real broker."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncIterator

import numpy as np
import openai
import pytest
import pytest_asyncio
import soundfile
from openai.types.chat import ChatCompletionChunk
from PIL import Image

from omnibus.broker.connection import Connection
from omnibus.frontdoor.context import Options
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support import media_stage
from tests.support.front import STEPS, Front, front, omni_sim

pytestmark = pytest.mark.integration

ASK = [{"role": "user", "content": "a red circle left of a blue square"}]
WORDS = "a red circle left of a blue square"


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline), Options(aliases={f"{pipeline}-alias": pipeline})) as made:
        yield made


def image_of(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def test_chat_answers_with_text_alone_when_modalities_are_left_out(front_door: Front) -> None:
    raw = await front_door.openai.chat.completions.with_raw_response.create(model=front_door.spec.name, messages=ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (8, 8, 16)
    assert answer.id == f"chatcmpl-{raw.headers['x-request-id']}"
    timing = raw.headers["server-timing"]
    assert "writer;dur=" in timing
    own = raw.headers["x-omnibus-overhead-ms"]
    assert timing.endswith(f"frontdoor;dur={own}")
    assert "painter" not in timing


async def test_chat_answers_with_text_image_and_audio_when_asked(front_door: Front) -> None:
    answer = await front_door.openai.chat.completions.create(
        model=front_door.spec.name,
        messages=ASK,
        modalities=["text", "image", "audio"],
        audio={"voice": "alloy", "format": "flac"},
    )
    message = answer.choices[0].message
    text, image = message.content
    assert text == {"type": "text", "text": WORDS}
    assert image_of(image["image_url"]["url"]).size == (16, 16)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)))
    assert (len(samples), rate) == (800, 8000)
    assert base64.b64decode(message.audio.data)[:4] == b"fLaC"
    assert message.audio.transcript == WORDS


async def test_chat_streams_text_in_pieces_then_every_other_output_once(front_door: Front) -> None:
    stream = await front_door.openai.chat.completions.create(
        model=front_door.spec.name,
        messages=ASK,
        modalities=["text", "image", "audio"],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"sampling_params": {"writer": {"token_rate": 50.0}}},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    pieces = [delta.content for delta in deltas if isinstance(delta.content, str) and delta.content]
    images = [delta.content for delta in deltas if isinstance(delta.content, list)]
    sounds = [delta.audio for delta in deltas if getattr(delta, "audio", None)]
    assert "".join(pieces) == WORDS
    assert len(pieces) == len(WORDS.split())  # a word every 20 ms: none waits for the next
    assert len(images) == 1
    assert image_of(images[0][0]["image_url"]["url"]).size == (16, 16)
    assert len(sounds) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 16


async def test_the_accumulating_helper_understands_the_stream(front_door: Front) -> None:
    async with front_door.openai.chat.completions.stream(model=front_door.spec.name, messages=ASK) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == WORDS


async def test_completions_continue_a_prompt_streamed_and_not(front_door: Front) -> None:
    whole = await front_door.openai.completions.create(model=front_door.spec.name, prompt="one two")
    stream = await front_door.openai.completions.create(model=front_door.spec.name, prompt="one two", stream=True)
    pieces = [chunk.choices[0].text async for chunk in stream]
    by_ids = await front_door.openai.completions.create(model=front_door.spec.name, prompt=[7, 8, 9])
    assert whole.choices[0].text == "one two" == "".join(pieces)
    assert len(pieces) > 1
    assert by_ids.choices[0].text == "7 8 9"


async def test_images_are_painted_as_base64_in_the_format_that_is_asked_for(front_door: Front) -> None:
    as_data = await front_door.openai.images.generate(model=front_door.spec.name, prompt=WORDS)
    as_webp = await front_door.openai.images.generate(model=front_door.spec.name, prompt=WORDS, output_format="webp")
    picture = Image.open(io.BytesIO(base64.b64decode(as_data.data[0].b64_json)))
    assert (picture.format, picture.size) == ("PNG", (16, 16))
    assert (as_data.size, as_data.output_format, as_data.background) == ("16x16", "png", "opaque")
    assert Image.open(io.BytesIO(base64.b64decode(as_webp.data[0].b64_json))).format == "WEBP"


async def test_images_stream_to_a_completed_event(front_door: Front) -> None:
    stream = await front_door.openai.images.generate(
        model=front_door.spec.name, prompt=WORDS, stream=True, partial_images=STEPS
    )
    events = [event async for event in stream]
    assert events[-1].type == "image_generation.completed"
    assert Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json))).size == (16, 16)


async def test_previews_leave_while_an_image_is_painted(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="painter", engine="python", model="tests.support.media_stage:paint", final_output=True,
        final_output_type="image",
    )  # fmt: skip
    media_stage.finish.clear()
    async with front(connection, PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))) as front_door:
        stream = await front_door.openai.images.generate(
            model=pipeline, prompt="hold", stream=True, partial_images=1, output_format="webp"
        )
        events = []
        async for event in stream:
            events.append(event)
            media_stage.finish.set()  # the painter waits for the first preview to arrive
    preview, last = events
    assert (preview.type, preview.partial_image_index, preview.size) == ("image_generation.partial_image", 0, "6x4")
    assert (last.type, last.size) == ("image_generation.completed", "24x16")
    assert {(one.background, one.quality, one.output_format) for one in events} == {("auto", "auto", "webp")}
    assert Image.open(io.BytesIO(base64.b64decode(preview.b64_json))).size == (6, 4)


async def test_speech_is_a_file_in_the_wanted_format(front_door: Front) -> None:
    ask = {"model": front_door.spec.name, "voice": "alloy", "input": WORDS}
    wav = await front_door.openai.audio.speech.create(**ask, response_format="wav")
    pcm = await front_door.openai.audio.speech.create(**ask, response_format="pcm")
    mp3 = await front_door.openai.audio.speech.create(**ask)
    samples, rate = soundfile.read(io.BytesIO(wav.content))
    assert (len(samples), rate) == (800, 8000)
    assert len(np.frombuffer(pcm.content, dtype="<i2")) == 2400
    assert mp3.response.headers["content-type"] == "audio/mpeg"


async def test_models_are_listed_and_found_under_both_names(front_door: Front) -> None:
    alias = f"{front_door.spec.name}-alias"
    assert [model.id async for model in front_door.openai.models.list()] == [alias]
    assert (await front_door.openai.models.retrieve(alias)).model_extra["modalities"] == ["text", "image", "audio"]
    assert (await front_door.openai.models.retrieve(front_door.spec.name)).id == front_door.spec.name
    answer = await front_door.openai.chat.completions.create(model=alias, messages=ASK)
    assert answer.model == alias


async def test_sampling_params_reach_the_stage_that_they_name(front_door: Front) -> None:
    by_name = await front_door.openai.chat.completions.create(
        model=front_door.spec.name, messages=ASK, extra_body={"sampling_params": {"writer": {"tokens": 2}}}
    )
    by_order = await front_door.openai.chat.completions.create(
        model=front_door.spec.name, messages=ASK, extra_body={"sampling_params_list": [{"tokens": 3}, None, None]}
    )
    assert by_name.choices[0].message.content == "a red"
    assert by_order.choices[0].message.content == "a red circle"


async def test_a_stage_that_rejects_gives_its_own_400_streamed_or_not(front_door: Front) -> None:
    reject = {"sampling_params": {"writer": {"reject_on": {"rid": "."}}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await front_door.openai.chat.completions.create(
                model=front_door.spec.name, messages=ASK, stream=stream, extra_body=reject
            )
        assert refused.value.code == "engine_rejected"


async def test_an_error_in_mid_stream_is_raised_by_the_client(front_door: Front) -> None:
    reject = {"sampling_params": {"painter": {"reject_on": {"rid": "."}}}}
    stream = await front_door.openai.chat.completions.create(
        model=front_door.spec.name, messages=ASK, modalities=["text", "image"], stream=True, extra_body=reject
    )
    said: list[str] = []
    with pytest.raises(openai.APIError, match="configured to reject") as failed:
        await _collect(stream, said)
    assert "".join(said) == WORDS
    assert failed.value.code == "engine_rejected"


async def test_media_of_a_chat_reach_the_first_stage(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline,
        stages=(
            StageSpec(
                stage_id=0, name="describer", engine="python", model="tests.support.media_stage:describe_media",
                final_output=True, final_output_type="text",
            ),
        ),
    )  # fmt: skip
    picture, sound = io.BytesIO(), io.BytesIO()
    # Larger than what rides inline: the request goes through the payload store.
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture, format="PNG")
    soundfile.write(sound, np.zeros(12_000, dtype=np.float32), 8000, format="WAV")
    url = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    content = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound.getvalue()).decode(), "format": "wav"}},
    ]
    async with front(connection, spec) as front_door:
        answer = await front_door.openai.chat.completions.create(
            model=pipeline, messages=[{"role": "user", "content": content}]
        )
    assert answer.choices[0].message.content == "what is this; image 300x400; audio 1.5 s"


async def _collect(stream: AsyncIterator[ChatCompletionChunk], said: list[str]) -> None:
    async for chunk in stream:
        said.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 what was said before the error counts


async def test_every_answer_says_how_long_the_front_door_itself_took(front_door: Front) -> None:
    asked = time.monotonic()
    slow = await front_door.http.post(
        "/v1/images/generations", json={"model": front_door.spec.name, "prompt": "a cat"}
    )  # which takes 20 ms to paint
    took = 1000 * (time.monotonic() - asked)
    stream = {"model": front_door.spec.name, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    others = [
        await front_door.http.post("/v1/chat/completions", json=stream),
        await front_door.http.post("/v1/chat/completions", json={"model": "nobody"}),
        await front_door.http.get("/v1/models"),
        await front_door.http.get("/nowhere"),
        await front_door.http.get("/live"),
    ]
    stages = sum(float(one.partition("dur=")[2]) for one in slow.headers["server-timing"].split(", ")[:-1])
    assert stages > 20
    assert float(slow.headers["x-omnibus-overhead-ms"]) < took - 20
    for answer in others:
        own = answer.headers["x-omnibus-overhead-ms"]
        assert answer.headers["server-timing"] == f"frontdoor;dur={own}"

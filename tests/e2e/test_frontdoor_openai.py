"""omni-tiny through the front door, asked by the unmodified `openai` package and judged by the prompt's grammar."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from omnibus.media.video import frames
from tests.e2e.conftest import ALIAS
from tools.omni_tiny.grading import grade_audio, grade_image, grade_text, grade_video
from tools.serving import Serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(360)]

MODEL = "omni-tiny"
PROMPT = "draw a red circle left of a blue square"
ALL = ["text", "image", "audio"]
GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "asking.md").read_text()
GUIDE_BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest_asyncio.fixture
async def client(omni_tiny: Serving) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{omni_tiny.url}/v1", api_key="any", max_retries=0, timeout=120.0) as made:
        yield made


def asking(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def files_of(answer: ChatCompletion) -> tuple[str, bytes, bytes]:
    """Text, image and audio of an answer that has all three."""
    message = answer.choices[0].message
    text, image = message.content
    return text["text"], _from_url(image["image_url"]["url"]), base64.b64decode(message.audio.data)


def _from_url(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


async def test_chat_answers_right_in_text_image_and_audio(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=asking(PROMPT), modalities=ALL, seed=1)
    text, image, audio = files_of(answer)
    assert grade_text(PROMPT, text)
    assert grade_image(PROMPT, image)
    assert grade_audio(PROMPT, audio)
    assert answer.choices[0].message.audio.transcript == text
    assert answer.usage.completion_tokens > 0


async def test_chat_streams_right_text_then_image_and_audio(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=asking(PROMPT),
        modalities=ALL,
        stream=True,
        stream_options={"include_usage": True},
        seed=1,
    )
    pieces, images, sounds, usage = [], [], [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content, audio = choice.delta.content, getattr(choice.delta, "audio", None)
            if isinstance(content, str) and content:
                assert not images, "text comes before what is made of it"
                pieces.append(content)
            images += content if isinstance(content, list) else []
            sounds += [audio] if audio else []
    assert grade_text(PROMPT, "".join(pieces))
    assert [bool(grade_image(PROMPT, _from_url(part["image_url"]["url"]))) for part in images] == [True]
    sound = b"".join(base64.b64decode(one.data) for one in sounds if getattr(one, "data", None))
    assert grade_audio(PROMPT, sound), "its pieces are one file"
    assert usage is not None


async def test_chat_streams_a_right_film_in_pieces_and_counts_what_its_stages_wrote(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=asking(PROMPT), modalities=["video"], stream=True, stream_options={"include_usage": True}
    )
    pieces, usage = [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        pieces += [choice.delta.video for choice in chunk.choices if hasattr(choice.delta, "video")]
    assert len(pieces) > 1
    assert grade_video(PROMPT, b"".join(base64.b64decode(piece["data"]) for piece in pieces))
    assert usage.completion_tokens > 0, "those of the thinker, whose text nobody gets"


async def test_chat_streams_a_long_text_in_pieces(client: AsyncOpenAI) -> None:
    """A short one may be one piece: what is written within a few milliseconds leaves together."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=asking(PROMPT), stream=True, max_tokens=150, extra_body={"min_tokens": 150}
    )
    pieces = [choice.delta.content async for chunk in stream for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 1


async def test_chat_runs_only_what_was_asked_for(client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=asking(PROMPT))
    assert grade_text(PROMPT, raw.parse().choices[0].message.content)
    assert "dit;dur" not in raw.headers["server-timing"]


async def test_chat_stops_at_its_stop_string(client: AsyncOpenAI) -> None:
    short = await client.chat.completions.create(model=MODEL, messages=asking(PROMPT), max_completion_tokens=1)
    stopped = await client.chat.completions.create(
        model=MODEL, messages=asking(PROMPT), stop=["left"], modalities=["text", "image"]
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 1
    assert stopped.choices[0].finish_reason == "stop"
    text, image = stopped.choices[0].message.content
    assert text["text"].split() == ["red", "circle"]
    assert _from_url(image["image_url"]["url"])[:4] == b"\x89PNG"


async def test_images_are_right_and_follow_their_seed(client: AsyncOpenAI) -> None:
    first, again, other = await asyncio.gather(
        *(client.images.generate(model=MODEL, prompt=PROMPT, extra_body={"seed": seed}) for seed in (7, 7, 8))
    )
    assert grade_image(PROMPT, base64.b64decode(first.data[0].b64_json))
    assert grade_image(PROMPT, base64.b64decode(other.data[0].b64_json))
    assert first.data[0].b64_json != other.data[0].b64_json
    assert grade_image(PROMPT, base64.b64decode(again.data[0].b64_json))


async def test_several_images_come_from_one_request(client: AsyncOpenAI) -> None:
    answer = await client.images.generate(model=MODEL, prompt=PROMPT, n=3, extra_body={"seed": 3})
    pictures = [base64.b64decode(item.b64_json) for item in answer.data]
    assert len(set(pictures)) == 3
    assert all(grade_image(PROMPT, picture) for picture in pictures)


async def test_images_stream_previews_then_the_image(client: AsyncOpenAI) -> None:
    asked = {"model": MODEL, "prompt": PROMPT, "partial_images": 2, "extra_body": {"seed": 1}}
    stream = await client.images.generate(**asked, stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events[-1:]] == ["image_generation.completed"]
    assert grade_image(PROMPT, base64.b64decode(events[-1].b64_json))


async def test_video_is_right_and_comes_only_where_it_is_asked_for(client: AsyncOpenAI, omni_tiny: Serving) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "seed": 1, "num_frames": 10}
    async with httpx.AsyncClient(base_url=omni_tiny.url, timeout=120.0) as http:
        film = await http.post("/v1/videos/sync", json=body)
        wide = await http.post("/v1/videos/sync", json={**body, "size": "128x64"})
        submitted = await http.get(f"/v1/requests/{film.headers['x-request-id']}")
    answer = await client.chat.completions.create(
        model=MODEL, messages=asking(PROMPT), extra_body={"modalities": ["image", "video"]}, seed=1
    )
    assert film.headers["content-type"] == "video/mp4", film.text
    assert grade_video(PROMPT, film.content)
    assert len(frames(film.content)[0]) == 10
    assert (wide.status_code, wide.json()["error"]["param"]) == (400, "size")
    assert [stage["stage"] for stage in submitted.json()["stages"]] == ["thinker", "dit", "clip"]
    image, video = answer.choices[0].message.content
    assert grade_image(PROMPT, _from_url(image["image_url"]["url"]))
    assert grade_video(PROMPT, _from_url(video["file"]["file_data"]))


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
async def test_video_of_the_guide_is_right(omni_tiny: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in GUIDE_BLOCKS if "client.videos" in block]
    monkeypatch.chdir(tmp_path)
    with openai.OpenAI(base_url=f"{omni_tiny.url}/v1", api_key="any", max_retries=0, timeout=120.0) as client:
        await asyncio.to_thread(exec, code, {"client": client})
    assert grade_video(PROMPT, (tmp_path / "circle.mp4").read_bytes())


async def test_steps_of_a_video_are_those_of_the_stage_that_paints(omni_tiny: Serving) -> None:
    body = {"model": MODEL, "prompt": PROMPT}
    async with httpx.AsyncClient(base_url=omni_tiny.url, timeout=120.0) as http:
        refused = await http.post("/v1/videos/sync", json={**body, "num_inference_steps": 8})
        film = await http.post("/v1/videos/sync", json={**body, "sampling_params": {"dit": {"num_inference_steps": 8}}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "num_inference_steps")
    assert frames(film.content), film.text


async def test_speech_is_right(client: AsyncOpenAI) -> None:
    speech = await client.audio.speech.create(model=MODEL, voice="alloy", input=PROMPT, response_format="wav")
    assert speech.response.headers["content-type"] == "audio/wav"
    assert grade_audio(PROMPT, speech.content)


async def test_models_are_listed_under_the_name_they_are_served_by(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == [ALIAS]
    assert (await client.models.retrieve(MODEL)).model_extra["root"] == MODEL


async def test_concurrent_chats_do_not_mix(client: AsyncOpenAI) -> None:
    prompts = [
        PROMPT,
        "a green cross above a yellow triangle",
        "paint a blue circle",
        "a red square below a green circle",
    ]
    answers = await asyncio.gather(
        *(client.chat.completions.create(model=ALIAS, messages=asking(prompt), modalities=ALL) for prompt in prompts)
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        text, _, audio = files_of(answer)
        assert grade_text(prompt, text)
        assert grade_audio(prompt, audio)


async def test_what_only_the_engine_can_refuse_is_its_400(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model=MODEL, messages=asking(PROMPT), extra_body={"sampling_params": {"thinker": {"nonsense": 1}}}
        )
    assert refused.value.code == "engine_rejected"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=asking("a red circle " * 300))

"""Files that requests name by their web addresses, by the unmodified `openai` package."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio
import soundfile

from omnibus.broker.connection import Connection
from omnibus.frontdoor.context import Options
from omnibus.media import pictures
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.front import Front, front
from tests.support.web_server import WebServer, body, web_server

pytestmark = pytest.mark.integration
PICTURE, OTHER = (pictures.encoded(np.zeros((side, 16, 3), np.uint8)) for side in (8, 24))


def _sound() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(4000, np.float32), 8000, format="WAV")
    return file.getvalue()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[WebServer, dict[str, Any]]]:
    answers = {
        "/picture": body(PICTURE, "image/png"), "/untyped": body(PICTURE, "application/octet-stream"),
        "/sound": body(_sound(), "audio/wav"), "/page": body(b"<html>", "text/html"),
    }  # fmt: skip
    async with web_server(answers) as made:
        yield made, answers


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str, server: tuple[WebServer, dict[str, Any]]) -> AsyncIterator[Front]:
    stage = StageSpec(
        stage_id=0, name="describer", engine="python", model="tests.support.media_stage:describe_media",
        final_output=True, final_output_type="text",
    )  # fmt: skip
    options = Options(allowed_media_domains=(f"127.0.0.1:{server[0].port}",), allowed_networks=("127.0.0.0/8",))
    async with front(connection, PipelineSpec(name=pipeline, deadline=30.0, stages=(stage,)), options) as made:
        yield made


async def described(door: Front, *parts: dict[str, Any], **more: Any) -> str:
    content: Any = [{"type": "text", "text": "see"}, *parts]
    answer = await door.openai.chat.completions.create(
        model=door.spec.name, messages=[{"role": "user", "content": content}], **more
    )
    return str(answer.choices[0].message.content)


def named(kind: str, url: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


async def test_files_of_the_web_reach_the_stage_as_those_of_data_urls_do(
    door: Front, server: tuple[WebServer, dict[str, Any]]
) -> None:
    url = server[0].url
    inside = f"data:image/png;base64,{base64.b64encode(OTHER).decode()}"
    parts = [named("image_url", one) for one in (f"{url}/picture", f"{url}/untyped", inside)]
    assert await described(door, *parts, named("audio_url", f"{url}/sound")) == (
        "see; image 16x8; image 16x8; image 16x24; audio 0.5 s"
    )


@pytest.mark.parametrize(
    ("kind", "address", "refused"),
    [
        ("image_url", "{url}/nothing", ("media_not_fetched", "404")),
        ("image_url", "{url}/page", ("invalid_request", "picture")),
        ("image_url", "http://example.com/a.png", ("invalid_request", "OMNIBUS_ALLOWED_MEDIA_DOMAINS")),
        ("audio_url", "{url}/picture", ("invalid_request", "sound")),
    ],
)
async def test_a_file_of_the_web_is_refused_by_its_field(
    door: Front, server: tuple[WebServer, dict[str, Any]], kind: str, address: str, refused: tuple[str, str]
) -> None:
    code, words = refused
    with pytest.raises(openai.BadRequestError) as refusal:
        await described(door, named(kind, address.format(url=server[0].url)))
    error: Any = refusal.value.body
    assert (error["code"], words in error["message"]) == (code, True), error
    assert error["param"].startswith(f"messages[0].content[1].{kind}")


async def test_a_request_is_the_same_under_its_key_when_the_file_has_changed_meanwhile(
    door: Front, server: tuple[WebServer, dict[str, Any]]
) -> None:
    web, answers = server
    part, key = named("image_url", f"{web.url}/picture"), {"extra_headers": {"Idempotency-Key": "the same"}}
    first = await described(door, part, **key)
    answers["/picture"] = body(OTHER, "image/png")
    assert first == await described(door, part, **key) == "see; image 16x8"
    assert await described(door, part) == "see; image 16x24"


async def test_files_of_the_caller_are_what_their_content_makes_them(door: Front) -> None:
    def part(**file: str) -> dict[str, Any]:
        return {"type": "file", "file": file}

    files = door.openai.files
    picture = await files.create(file=("a.bin", PICTURE), purpose="vision")
    sound = await files.create(file=("b.bin", _sound()), purpose="user_data")
    inside = f"data:application/octet-stream;base64,{base64.b64encode(OTHER).decode()}"
    said = await described(door, part(file_id=picture.id), part(file_id=sound.id), part(file_data=inside, filename="c"))
    assert said == "see; image 16x8; audio 0.5 s; image 16x24"
    text = await files.create(file=("c.txt", b"a text"), purpose="user_data")
    for wrong, field, status in (
        (part(file_id=text.id), ".file_id", 400),
        (part(file_id="file-none"), ".file_id", 404),
        (part(file_id=picture.id, file_data=inside), "", 400),
        (part(), "", 400),
        (part(file_data="data:application/pdf;base64,aGk="), ".file_data", 400),
    ):
        with pytest.raises(openai.APIStatusError) as refusal:
            await described(door, wrong)
        error: Any = refusal.value.body
        assert (refusal.value.status_code, error["param"]) == (status, f"messages[0].content[1].file{field}")

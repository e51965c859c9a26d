"""Images as links: readable without a key until they expire, and counted among the caller's files."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from PIL import Image

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerUnavailable
from omnibus.files.file_links import FileLinks
from omnibus.frontdoor.context import Options
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


def options(name: str, **changed: Any) -> Options:
    return Options(api_keys=(name,), **changed)


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline), options(pipeline)) as made:
        yield made


async def links(door: Front, **more: Any) -> list[str]:
    images = await door.openai.images.generate(model=door.spec.name, prompt="a cat", response_format="url", **more)
    return [str(image.url) for image in images.data or ()]


async def test_an_image_is_read_by_its_link_without_a_key_and_is_a_file_of_its_owner(door: Front) -> None:
    (url,) = await links(door, output_format="webp")
    async with httpx.AsyncClient() as stranger:
        found = await stranger.get(url)
        part = await stranger.get(url, headers={"Range": "bytes=0-3"})
        without = await stranger.get(url.rpartition("/")[0])
        forged = await stranger.get(url[:-4] + "AAAA")
    assert (found.status_code, found.headers["content-type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(found.content)).format == "WEBP"
    assert (part.status_code, part.content) == (206, found.content[:4])
    assert (without.status_code, forged.status_code) == (401, 404)
    (file,) = [one async for one in door.openai.files.list(purpose="image")]
    assert (file.bytes, file.expires_at) == (len(found.content), file.created_at + 3600)
    assert f"/v1/files/{file.id}/content/" in url
    await door.openai.files.delete(file.id)
    assert (await door.http.get(url)).status_code == 404


async def test_an_answer_that_is_made_again_stores_its_images_once(
    door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"extra_headers": {"Idempotency-Key": "once"}}
    first, second = await links(door, **again), await links(door, **again)
    assert len([one async for one in door.openai.files.list()]) == 1
    assert first != second
    assert (await door.http.get(first[0])).content == (await door.http.get(second[0])).content

    async def unavailable(*_: object) -> str:
        raise BrokerUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(FileLinks, "add", unavailable)
        with pytest.raises(openai.InternalServerError):
            await links(door, **again)
    assert len(await links(door, **again)) == 1


async def test_a_link_leads_nowhere_when_it_has_expired(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline, image_link_lifetime=1.0)) as door:
        (url,) = await links(door)
        assert (await door.http.get(url)).status_code == 200

        async def is_gone() -> bool:
            return (await door.http.get(url)).status_code == 404

        await eventually(is_gone, 10.0, what="the link is gone")


async def test_links_are_refused_before_anything_is_painted_when_the_quota_is_used_up(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline, files_quota=1)) as door:
        assert len(await links(door)) == 1  # it counts from then on
        with pytest.raises(openai.APIStatusError) as refusal:
            await links(door)
        assert (refusal.value.status_code, refusal.value.code) == (413, "quota_exceeded")


async def test_links_begin_with_the_address_that_the_operator_names(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline, public_url="https://models.example/")) as door:
        (url,) = await links(door)
    assert url.startswith("https://models.example/v1/files/file-")

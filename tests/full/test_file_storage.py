"""`/v1/files` with the bytes in a folder of the operator's, by the unmodified `openai` package."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.files import file_upkeep
from omnibus.files.file_upkeep import FileUpkeep
from omnibus.files.stored_bodies import StoredBodies
from omnibus.frontdoor.context import Options
from tests.integration.test_files import chunks_stored, new_chunks
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
DATA = random.Random(7).randbytes(9_000_001)


def options(name: str, folder: Path) -> Options:
    return Options(api_keys=(name,), files_quota=10_000_000, file_store=f"file://{folder}")


def inside(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str, tmp_path: Path) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline), options(pipeline, tmp_path), workers=False) as made:
        yield made


async def test_a_file_is_kept_in_the_folder_and_read_whole_and_in_parts(
    door: Front, connection: Connection, tmp_path: Path
) -> None:
    before = await chunks_stored(connection)
    sent = await door.openai.files.create(file=("data.bin", DATA), purpose="user_data")
    assert not await new_chunks(connection, before)
    (file,) = inside(tmp_path)
    assert (file.read_bytes(), file.name.endswith(sent.id)) == (DATA, True)
    assert (await door.openai.files.content(sent.id)).content == DATA
    part = await door.http.get(f"/v1/files/{sent.id}/content", headers={"Range": "bytes=-5"})
    assert (part.status_code, part.content) == (206, DATA[-5:])
    with pytest.raises(openai.APIStatusError) as refusal:
        await door.openai.files.create(file=("more.bin", DATA), purpose="user_data")
    assert refusal.value.code == "quota_exceeded"
    assert inside(tmp_path) == [file]
    await door.openai.files.delete(sent.id)
    assert inside(tmp_path) == []


async def test_a_file_of_the_broker_is_read_when_new_ones_go_to_the_folder(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    spec = omni_sim(pipeline)
    async with front(connection, spec, Options(api_keys=(pipeline,)), workers=False) as before:
        old = await before.openai.files.create(file=("old.txt", b"old"), purpose="user_data")
        async with front(connection, spec, options(pipeline, tmp_path), workers=False) as door:
            new = await door.openai.files.create(file=("new.txt", b"new"), purpose="user_data")
            assert [(await door.openai.files.content(one.id)).text for one in (old, new)] == ["old", "new"]
        with pytest.raises(openai.APIStatusError) as lost:
            await before.openai.files.content(new.id)
    assert (lost.value.status_code, lost.value.code) == (500, "payload_lost")


async def test_bytes_of_expired_files_are_removed_by_one_front_door(
    door: Front, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = StoredBodies(f"file://{tmp_path}")
    (tmp_path / "000000000001.file-old").write_bytes(b"old")
    kept = await door.openai.files.create(file=("data.bin", b"data"), purpose="user_data")
    monkeypatch.setattr(file_upkeep, "EVERY", 1.0)
    async with FileUpkeep(connection, bodies), FileUpkeep(connection, bodies), FileUpkeep(connection, None):
        await eventually(lambda: len(inside(tmp_path)) == 1, what="the old one is removed")
    assert (await door.openai.files.content(kept.id)).content == b"data"

"""`/v1/files`, by the unmodified `openai` package: what is uploaded comes back, to its owner alone, for its lifetime."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import tracemalloc
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
import pytest_asyncio
from fastapi import Request as HttpRequest

from omnibus.broker.connection import Connection
from omnibus.broker.objects import CHUNK, WINDOW
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import BrokerUnavailable, PayloadLost
from omnibus.files.file_record import FileRecord, QuotaExceeded, UnknownFile
from omnibus.files.file_store import FileStore
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.file_answers import file_response
from omnibus.wire import stores
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    """A front door whose keys, and so whose tenants, have no files yet: the store is one for all pipelines."""
    options = Options(api_keys=(pipeline, f"{pipeline}-other"), max_file_bytes=12 << 20, files_quota=30 << 20)
    async with front(connection, omni_sim(pipeline), options, workers=False) as made:
        yield made


def other_tenant(front_door: Front) -> openai.AsyncOpenAI:
    return front_door.openai.with_options(api_key=f"{front_door.spec.name}-other")


async def chunks_stored(connection: Connection) -> dict[str, int]:
    """Chunks of each file that is stored, those of other tests among them, which may go at any time."""
    name = f"OBJ_{stores.FILES_BUCKET}"
    info = await connection.api(f"STREAM.INFO.{name}", {"subjects_filter": f"$O.{stores.FILES_BUCKET}.C.>"})
    return info["state"].get("subjects") or {}


async def new_chunks(connection: Connection, before: dict[str, int]) -> int:
    """Chunks of files that were not there before."""
    return sum(count for file, count in (await chunks_stored(connection)).items() if file not in before)


@pytest.mark.parametrize("nbytes", [0, 1, CHUNK, CHUNK * WINDOW + 77, 9_000_001])
async def test_a_file_comes_back_as_it_was_sent_when_it_is_whole_or_in_parts(front_door: Front, nbytes: int) -> None:
    data = random.Random(nbytes).randbytes(nbytes)
    sent = await front_door.openai.files.create(file=("a folder/data.bin", data), purpose="user_data")
    assert (sent.bytes, sent.filename, sent.purpose, sent.status) == (nbytes, "data.bin", "user_data", "processed")
    assert sent.expires_at is not None
    assert sent.expires_at - sent.created_at == 30 * 86_400
    assert await front_door.openai.files.retrieve(sent.id) == sent
    assert (await front_door.openai.files.content(sent.id)).content == data
    for first, last in ((0, 0), (nbytes // 2, nbytes // 2 + CHUNK), (max(nbytes - 5, 0), nbytes - 1)):
        if first > last or first >= nbytes:
            continue
        part = await front_door.http.get(f"/v1/files/{sent.id}/content", headers={"Range": f"bytes={first}-{last}"})
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {first}-{min(last, nbytes - 1)}/{nbytes}"
        assert part.content == data[first : last + 1]
    beyond = await front_door.http.get(f"/v1/files/{sent.id}/content", headers={"Range": f"bytes={nbytes}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{nbytes}")


async def test_files_are_listed_in_pages_when_there_are_many(front_door: Front) -> None:
    made = []
    for number in range(7):
        purpose = "batch" if number % 2 else "vision"
        made.append(await front_door.openai.files.create(file=(f"{number}.jsonl", b"{}"), purpose=purpose))  # type: ignore[arg-type]
        await asyncio.sleep(0.002)  # ids are in the order of milliseconds
    ids = [one.id for one in made]
    assert [one.id async for one in front_door.openai.files.list(limit=2)] == ids[::-1]
    assert [one.id async for one in front_door.openai.files.list(limit=3, order="asc")] == ids
    assert [one.id async for one in front_door.openai.files.list(limit=1, purpose="batch")] == ids[5::-2]
    page = await front_door.openai.files.list(limit=2, order="asc", after=ids[4])
    assert ([one.id for one in page.data], page.has_more) == (ids[5:], False)
    await front_door.openai.files.delete(ids[4])
    assert [one.id async for one in front_door.openai.files.list(order="asc", after=ids[4])] == ids[5:]


async def test_a_file_is_its_owners_alone_when_there_are_keys(front_door: Front) -> None:
    sent = await front_door.openai.files.create(file=("mine.txt", b"mine"), purpose="user_data")
    other = other_tenant(front_door)
    for asking in (other.files.retrieve(sent.id), other.files.content(sent.id), other.files.delete(sent.id)):
        with pytest.raises(openai.NotFoundError, match="no file"):
            await asking
    assert [one.id async for one in other.files.list()] == []
    assert (await front_door.openai.files.content(sent.id)).content == b"mine"


async def test_nothing_stays_when_a_file_is_deleted(front_door: Front, connection: Connection) -> None:
    sent = await front_door.openai.files.create(file=("gone.bin", bytes(3 * CHUNK)), purpose="batch")
    deleted = await front_door.openai.files.delete(sent.id)
    assert (deleted.id, deleted.deleted) == (sent.id, True)
    with pytest.raises(openai.NotFoundError):
        await front_door.openai.files.content(sent.id)
    with pytest.raises(openai.NotFoundError):
        await front_door.openai.files.delete(sent.id)
    with pytest.raises(PayloadLost):
        await anext(StreamedObjects(connection, stores.FILES_BUCKET).read(sent.id))


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"purpose": "batch"}}, "file"),
        ({"data": {"purpose": "batch", "file": "a text"}}, "file"),
        ({"files": {"file": ("a", b"x")}}, "purpose"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "batch_output"}}, "purpose"),
        ({"files": {"file": ("folder/", b"x")}, "data": {"purpose": "batch"}}, "file"),
        ({"files": {"file": ("a" * 300, b"x")}, "data": {"purpose": "batch"}}, "file"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "expires_after[seconds]": "9"}}, "expires_after[anchor]"),
        (
            {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "expires_after[anchor]": "created_at"}},
            "expires_after[seconds]",
        ),
        (
            {
                "files": {"file": ("a", b"x")},
                "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            },
            "expires_after[seconds]",
        ),
    ],
)  # fmt: skip
async def test_a_field_is_named_when_a_form_cannot_be_taken(
    front_door: Front, form: dict[str, object], param: str
) -> None:
    given = {"files": {"nothing": b""}, **form} if "files" not in form else form
    answer = await front_door.http.post("/v1/files", **given)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await front_door.openai.files.list()).data == []


async def test_a_field_that_is_none_is_refused_when_it_would_change_something(front_door: Front) -> None:
    form = {"purpose": "batch", "expires_in": "3600"}
    uploaded = await front_door.http.post("/v1/files", files={"file": b"x"}, data=form)
    listed = await front_door.http.get("/v1/files", params={"purposes": "batch"})
    errors = [(answer.status_code, answer.json()["error"]["param"]) for answer in (uploaded, listed)]
    assert errors == [(400, "expires_in"), (400, "purposes")]


@pytest.mark.parametrize(
    "query", [{"after": "file-none"}, {"after": "x"}, {"after": ""}, {"purpose": "batsh"}, {"purpose": ""}]
)
async def test_a_filter_is_refused_when_no_file_can_be_meant(front_door: Front, query: dict[str, str]) -> None:
    listed = await front_door.http.get("/v1/files", params=query)
    assert (listed.status_code, listed.json()["error"]["param"]) == (400, next(iter(query)))


async def test_a_body_that_is_no_form_is_refused_when_it_is_sent(front_door: Front) -> None:
    answer = await front_door.http.post("/v1/files", json={"purpose": "batch"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    broken = await front_door.http.post(
        "/v1/files", content=b"no parts", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 400


async def test_413_and_nothing_stays_when_a_file_or_all_files_are_too_large(
    front_door: Front, connection: Connection
) -> None:
    before = await chunks_stored(connection)
    with pytest.raises(openai.APIStatusError, match="a file may have 12582912 bytes") as too_large:
        await front_door.openai.files.create(file=("a.bin", bytes((12 << 20) + 1)), purpose="batch")
    assert too_large.value.status_code == 413
    for _ in range(3):
        await front_door.openai.files.create(file=("b.bin", bytes(9 << 20)), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="together") as refused:
        await front_door.openai.files.create(file=("c.bin", bytes(4 << 20)), purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (413, "quota_exceeded")  # type: ignore[attr-defined]
    assert await new_chunks(connection, before) == 3 * (9 << 20) // CHUNK, "those of the three that were taken"
    await other_tenant(front_door).files.create(file=("c.bin", bytes(4 << 20)), purpose="batch")


@pytest.fixture
async def files(connection: Connection, front_door: Front) -> FileStore:
    return FileStore(connection, quota=1 << 30)


async def test_a_file_is_gone_when_its_lifetime_is_over(files: FileStore, connection: Connection) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(CHUNK + 5)

    before = await chunks_stored(connection)
    record = await files.add(None, pieces(), filename="short.bin", purpose="batch", lifetime=1.0)
    assert (await files.find(None, record.id)) == record

    async def is_gone() -> bool:
        return not await new_chunks(connection, before)

    assert await eventually(is_gone, 20.0)
    with pytest.raises(UnknownFile):
        await files.find(None, record.id)


async def test_a_file_is_not_found_when_its_bytes_have_expired_while_it_was_uploaded(files: FileStore) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(5)
        await asyncio.sleep(0.02)

    record = await files.add(None, pieces(), filename="slow.bin", purpose="batch", lifetime=0.01)
    with pytest.raises(UnknownFile):
        await files.find(None, record.id)


async def test_nothing_stays_when_an_upload_breaks_off(files: FileStore, connection: Connection) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(CHUNK * WINDOW * 2)
        await asyncio.sleep(0)
        raise ConnectionError("the client went away")

    before = await chunks_stored(connection)
    with pytest.raises(ConnectionError):
        await files.add("somebody", pieces(), filename="half.bin", purpose="batch", lifetime=3600.0)
    assert not await new_chunks(connection, before)
    tight = FileStore(connection, quota=CHUNK)
    with pytest.raises(QuotaExceeded):
        await tight.add("somebody", _zeros(CHUNK + 1), filename="big.bin", purpose="batch", lifetime=3600.0)


async def test_uploads_at_the_same_time_leave_no_more_than_the_quota(connection: Connection, front_door: Front) -> None:
    """Every one of them finds room when it begins; room for two is all that there is."""
    del front_door  # which made the store
    tenant, tight = secrets.token_hex(8), FileStore(connection, quota=2 * CHUNK + 1)
    adding = (tight.add(tenant, _zeros(CHUNK), filename="one.bin", purpose="batch", lifetime=3600.0) for _ in range(4))
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    assert {type(one) for one in outcomes} <= {FileRecord, QuotaExceeded}
    page = await tight.page(tenant, after=None, limit=10, oldest_first=True, purpose=None)
    assert sum(one.nbytes for one in page.records) <= 2 * CHUNK


async def test_nothing_stays_when_the_record_of_an_upload_is_not_written(
    files: FileStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> int:
        raise BrokerUnavailable("no record today")

    monkeypatch.setattr(files._records.bucket, "create", refuse)
    before = await chunks_stored(connection)
    with pytest.raises(BrokerUnavailable, match="no record today"):
        await files.add("somebody", _zeros(CHUNK * 2), filename="lost.bin", purpose="batch", lifetime=3600.0)
    assert not await new_chunks(connection, before)


async def _zeros(nbytes: int) -> AsyncIterator[bytes]:
    for _ in range(nbytes // CHUNK):
        yield bytes(CHUNK)
    yield bytes(nbytes % CHUNK)


async def test_a_large_file_never_stands_in_memory(files: FileStore) -> None:
    nbytes = 80 << 20
    tracemalloc.start()
    try:
        record = await files.add(None, _zeros(nbytes), filename="large.bin", purpose="user_data", lifetime=3600.0)
        digest, read = hashlib.sha256(), 0
        async for piece in files.read(record):
            digest.update(piece)
            read += len(piece)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (record.nbytes, read) == (nbytes, nbytes)
    assert most < 30 << 20


async def test_a_download_ends_with_an_error_when_the_file_is_deleted_meanwhile(files: FileStore) -> None:
    record = await files.add(None, _zeros(CHUNK * WINDOW * 3), filename="x.bin", purpose="batch", lifetime=3600.0)
    reading = files.read(record)
    await anext(reading)
    await files.delete(None, record.id)
    with pytest.raises(PayloadLost):
        async for _ in reading:
            pass


async def test_an_answer_is_an_error_and_not_half_a_file_when_the_bytes_are_gone(
    front_door: Front, connection: Connection, files: FileStore
) -> None:
    sent = await front_door.openai.files.create(file=("gone.bin", bytes(9)), purpose="batch")
    await StreamedObjects(connection, stores.FILES_BUCKET).delete(sent.id)
    for headers in ({}, {"Range": "bytes=1-3"}):
        answer = await front_door.http.get(f"/v1/files/{sent.id}/content", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "payload_lost")

    record = await files.add(None, _zeros(9), filename="x.bin", purpose="batch", lifetime=3600.0)
    await files.delete(None, record.id)  # behind the look at its description
    with pytest.raises(UnknownFile):
        await file_response(files, None, record, HttpRequest({"type": "http", "headers": []}))


async def test_an_id_that_is_none_is_unknown(front_door: Front) -> None:
    for file_id in ("file-", "other-1", "file-a.b", "file-*", "file->", "file-ü"):
        answer: httpx.Response = await front_door.http.get(f"/v1/files/{file_id}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found"), file_id

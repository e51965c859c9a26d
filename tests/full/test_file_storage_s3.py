"""Bytes of files in S3, by a server that speaks it (moto, in a venv of its own): parts, ranges, ends of uploads, expiry."""

from __future__ import annotations

import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.listening import free_port
from omnibus.errors import PayloadLost
from omnibus.files.file_record import QuotaExceeded
from omnibus.files.stored_bodies import StoredBodies
from omnibus.frontdoor.context import Options
from tests.support.cached_venv import bare_environment, cached_venv
from tests.support.front import front, omni_sim

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
PACKAGES = ("moto[s3,server]==5.2.5",)
DATA = random.Random(5).randbytes(20 << 20)
PLACE = "s3://files/a/prefix"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 with a bucket `files`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [cached_venv("moto", PACKAGES).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, env=bare_environment(), stderr=subprocess.DEVNULL) as running:
        try:
            _make_bucket(url)
            yield url
        finally:
            running.terminate()


def _make_bucket(url: str) -> None:
    until = time.monotonic() + 60.0
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/files", method="PUT"), timeout=10).close()
        except urllib.error.URLError:
            assert time.monotonic() < until, "no S3 has come up"
            time.sleep(0.1)
        else:
            return


@pytest.fixture(autouse=True)
def credentials(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server, "AWS_ALLOW_HTTP": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def asked(server: str, query: str) -> str:
    with urllib.request.urlopen(f"{server}/files?{query}", timeout=10) as answer:
        return str(answer.read().decode())


async def pieces(*, error: Exception | None = None) -> AsyncIterator[bytes]:
    for at in range(0, len(DATA), 1 << 20):
        yield DATA[at : at + (1 << 20)]
    if error is not None:
        raise error


async def test_bytes_are_stored_in_parts_read_in_any_part_and_removed_when_they_expire(server: str) -> None:
    bodies = StoredBodies(PLACE)
    assert await bodies.store("file-1", pieces(), expires=1000.0) == len(DATA)
    assert await bodies.store("file-2", pieces(), expires=1e9) == len(DATA)
    with pytest.raises(QuotaExceeded):
        await bodies.store("file-3", pieces(error=QuotaExceeded("too many")), expires=1e9)
    assert "<Upload>" not in asked(server, "uploads"), "an upload was left half done"
    for first, nbytes in ((0, len(DATA)), ((8 << 20) - 3, 7), (len(DATA) - 1, 1)):
        found = b"".join([piece async for piece in bodies.read("file-2", first, nbytes, expires=1e9)])
        assert found == DATA[first : first + nbytes]
    assert await bodies.remove_expired(now=2000.0) == 1
    assert "file-1" not in asked(server, "list-type=2")
    assert "a/prefix/00003b9aca00.file-2" in asked(server, "list-type=2")
    await bodies.delete("file-2", expires=1e9)
    with pytest.raises(PayloadLost):
        [piece async for piece in bodies.read("file-2", 0, 1, expires=1e9)]


async def test_files_of_callers_are_kept_in_s3(connection: Connection, pipeline: str, server: str) -> None:
    options = Options(api_keys=(pipeline,), file_store=PLACE)
    async with front(connection, omni_sim(pipeline), options, workers=False) as door:
        sent = await door.openai.files.create(file=("a.bin", DATA), purpose="user_data")
        assert sent.id in asked(server, "list-type=2")
        assert (await door.openai.files.content(sent.id)).content == DATA
        part = await door.http.get(f"/v1/files/{sent.id}/content", headers={"Range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, DATA[-5:])
        await door.openai.files.delete(sent.id)
        assert sent.id not in asked(server, "list-type=2")
        with pytest.raises(openai.NotFoundError):
            await door.openai.files.content(sent.id)

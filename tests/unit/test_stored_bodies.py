"""Bytes of files in a folder of the operator's: written whole or not at all, read in parts, removed when they expire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omnibus.errors import BrokerUnavailable, ConfigError, PayloadLost
from omnibus.files.file_record import QuotaExceeded
from omnibus.files.stored_bodies import StoredBodies

pytestmark = pytest.mark.unit
MIB = 1 << 20


async def pieces(*data: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for one in data:
        yield one
    if error is not None:
        raise error


def files_in(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*") if file.is_file()]


async def read(bodies: StoredBodies, first: int, nbytes: int) -> bytes:
    return b"".join([piece async for piece in bodies.read("file-1", first, nbytes, expires=1000.5)])


async def test_bytes_are_read_in_any_part_as_they_were_written(tmp_path: Path) -> None:
    data = [bytes([number]) * MIB for number in range(12)]
    bodies = StoredBodies(f"file://{tmp_path}/new")
    assert await bodies.store("file-1", pieces(*data), expires=1000.5) == 12 * MIB
    whole = b"".join(data)
    for first, nbytes in ((0, 12 * MIB), (0, 1), (5 * MIB - 3, 7), (12 * MIB - 1, 1), (3, 0)):
        assert await read(StoredBodies(f"file://{tmp_path}/new/"), first, nbytes) == whole[first : first + nbytes]
    await bodies.store("empty", pieces(), expires=1.0)
    assert [piece async for piece in bodies.read("empty", 0, 0, expires=1.0)] == []


async def test_nothing_stays_when_its_pieces_end_with_an_error_or_its_writer_is_left(tmp_path: Path) -> None:
    bodies, large = StoredBodies(f"file://{tmp_path}"), b"x" * 20 * MIB
    with pytest.raises(QuotaExceeded):
        await bodies.store("file-1", pieces(large, error=QuotaExceeded("too many")), expires=1.0)
    with pytest.raises(ValueError, match="of a caller"):
        await bodies.store("file-1", pieces(large, error=ValueError("of a caller")), expires=1.0)

    async def endless() -> AsyncIterator[bytes]:
        yield large
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await bodies.store("file-1", endless(), expires=1.0)
    assert files_in(tmp_path) == []


async def test_bytes_are_lost_when_they_are_gone(tmp_path: Path) -> None:
    bodies = StoredBodies(f"file://{tmp_path}")
    await bodies.store("file-1", pieces(b"data"), expires=1000.5)
    await bodies.delete("file-1", expires=1000.5)
    await bodies.delete("file-1", expires=1000.5)
    with pytest.raises(PayloadLost, match="gone"):
        await read(bodies, 0, 4)


async def test_what_has_expired_is_removed_and_nothing_else(tmp_path: Path) -> None:
    bodies = StoredBodies(f"file://{tmp_path}")
    for name, expires in (("old", 10.0), ("older", 5.0), ("young", 1e9)):
        await bodies.store(name, pieces(b"data"), expires=expires)
    (tmp_path / "another's.txt").write_text("not ours")
    assert await bodies.remove_expired(now=100.0) == 2
    assert await bodies.remove_expired(now=100.0) == 0
    assert sorted(files_in(tmp_path)) == ["00003b9aca00.young", "another's.txt"]


async def test_a_storage_that_fails_is_unavailable(tmp_path: Path) -> None:
    bodies = StoredBodies(f"file://{tmp_path}/there")
    (tmp_path / "there").rmdir()
    (tmp_path / "there").write_text("a file in the way")
    with pytest.raises(BrokerUnavailable, match="cannot be stored"):
        await bodies.store("file-1", pieces(b"data"), expires=1.0)


def test_a_place_is_refused_by_its_setting_when_it_is_none() -> None:
    with pytest.raises(ConfigError, match="OMNIBUS_FILE_STORE"):
        StoredBodies("nowhere://bucket")

"""Objects that are written behind the message that refers to them: soon, in turn, bounded."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.errors import BrokerUnavailable, PayloadLost
from omnibus.payloads import write_through
from omnibus.payloads.write_through import WriteThrough
from omnibus.wire.payload import MemorySlot, ObjectKey

pytestmark = pytest.mark.unit

KEY, SLOT = ObjectKey("r.1"), MemorySlot("host", "slot", 1)


class Slow:
    """A store that writes when it is let."""

    def __init__(self) -> None:
        self.open, self.written, self.at_once = asyncio.Event(), 0, 0

    async def put(self, _key: ObjectKey, _slot: MemorySlot, _nbytes: int, _rid: str) -> None:
        self.at_once += 1
        assert self.at_once == 1, "one after the other"
        await self.open.wait()
        self.at_once -= 1
        self.written += 1


async def test_writer_does_not_wait_and_its_leaving_does() -> None:
    slow = Slow()
    behind = WriteThrough(slow.put)
    for _ in range(3):
        await behind.add(KEY, SLOT, 10, "r")
    assert slow.written == 0
    slow.open.set()
    await behind.close()
    assert slow.written == 3


async def test_writer_waits_when_too_much_is_to_be_written_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_through, "_MOST_BYTES", 15)
    written = []

    async def put(key: ObjectKey, _slot: MemorySlot, _nbytes: int, _rid: str) -> None:
        written.append(key)

    behind = WriteThrough(put)
    await behind.add(ObjectKey("first"), SLOT, 10, "r")
    await behind.add(ObjectKey("second"), SLOT, 10, "r")
    assert written == [ObjectKey("second")], "at once, and the first one not yet"
    await behind.close()
    assert len(written) == 2
    await behind.add(ObjectKey("third"), SLOT, 10, "r")
    assert len(written) == 2, "there is room again"
    await behind.close()


@pytest.mark.parametrize("error", [BrokerUnavailable("cut off"), PayloadLost("its request has ended")])
async def test_outage_or_end_costs_nothing_but_the_copy(error: Exception) -> None:
    async def put(_key: ObjectKey, _slot: MemorySlot, _nbytes: int, _rid: str) -> None:
        raise error

    behind = WriteThrough(put)
    await behind.add(KEY, SLOT, 10, "r")
    await behind.close()


async def test_what_is_not_written_in_time_is_left_when_the_process_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_through, "_CLOSE_TIMEOUT", 0.01)
    behind = WriteThrough(Slow().put)
    await behind.add(KEY, SLOT, 10, "r")
    await asyncio.wait_for(behind.close(), 5.0)

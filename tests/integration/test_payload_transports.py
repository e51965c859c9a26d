"""Payloads of two hosts: folders of memory that cannot see each other, on one machine."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.listening import free_port
from omnibus.broker.objects import ObjectStore
from omnibus.errors import BrokerRefused, PayloadLost
from omnibus.ledger.performer import Performer
from omnibus.payloads import fetching
from omnibus.payloads.memory import HostMemory
from omnibus.payloads.output_store import OutputStore
from omnibus.payloads.packing import packed
from omnibus.payloads.peer import PeerServer
from omnibus.payloads.store import PayloadStore
from omnibus.payloads.transports import Transports
from omnibus.pipeline.route import Route
from omnibus.pipeline.spec import PayloadRule
from omnibus.requests.effects import Purge
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import Ticket
from omnibus.wire.payload import MSGPACK, MemorySlot, ObjectKey, Payload, PeerSlot, StoredOutput
from tests.support.flow import line
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

ARRAY = np.arange(500_000, dtype=np.float32)


@asynccontextmanager
async def store_on(
    connection: Connection, pipeline: str, folder: Path, *, address: str = ""
) -> AsyncIterator[PayloadStore]:
    """The store of a process on a host of its own, which a folder stands for."""
    memory = HostMemory(pipeline, 64 << 20, folder)
    peer = PeerServer(address, folder) if address else None
    async with PayloadStore(connection, pipeline, Transports(memory=memory, peer=peer)) as store:
        yield store
    if peer is not None:
        peer.close()
    memory.close()


@pytest.fixture
async def hosts(connection: Connection, pipeline: str, tmp_path: Path) -> tuple[Path, Path]:
    await ensure_layout(connection, layout_of(line(pipeline)))
    folders = tmp_path / "here", tmp_path / "there"
    for folder in folders:
        folder.mkdir()
    return folders


def ticket(pipeline: str) -> Ticket:
    now = time.time()
    request = Payload.inline(b"", MSGPACK)
    return Ticket(rid="r", pipeline=pipeline, route=Route(()), created=now, deadline=now + 60, request=request)


async def put(store: PayloadStore, pipeline: str, rule: PayloadRule = PayloadRule.AUTO) -> Payload:
    return await store.put(await packed({"array": ARRAY}), rid="r", ticket=ticket(pipeline), rule=rule)


def same(value: object) -> bool:
    assert isinstance(value, dict)
    return value["array"].ctypes.data % 64 == 0 and np.array_equal(value["array"], ARRAY)


async def test_reader_elsewhere_has_a_payload_stored_and_it_goes_with_its_request(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    async with store_on(connection, pipeline, hosts[0]) as here, store_on(connection, pipeline, hosts[1]) as there:
        payload = await put(here, pipeline)
        assert [type(place) for place in payload.locations] == [MemorySlot]
        assert same(await here.value(payload, "r"))
        assert same(await there.value(payload, "r"))
        assert await here.sweep(time.time(), 60.0) == ["r"], "an orchestrator is asked when to remove it"
        assert await Performer(connection, pipeline).present() == {"r": False}
        await Performer(connection, pipeline).perform([Purge("r", "n", queued=False, stored=True)])
        assert await Performer(connection, pipeline).present() == {}


async def test_reader_without_memory_has_a_payload_stored(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    async with store_on(connection, pipeline, hosts[0]) as here:
        assert same(await PayloadStore(connection, pipeline).value(await put(here, pipeline), "r"))


async def test_payload_is_stored_by_another_process_of_its_host_when_its_producer_has_gone(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    async with store_on(connection, pipeline, hosts[0]), store_on(connection, pipeline, hosts[1]) as there:
        async with store_on(connection, pipeline, hosts[0], address="127.0.0.1") as leaving:
            payload = await put(leaving, pipeline)
        assert [type(place) for place in payload.locations] == [MemorySlot, PeerSlot]
        assert same(await there.value(payload, "r")), "its peer is gone, and its memory is not"


@pytest.mark.parametrize("rule", [PayloadRule.AUTO, PayloadRule.PEER])
async def test_reader_elsewhere_pulls_from_a_peer_and_nothing_is_stored(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], rule: PayloadRule
) -> None:
    async with (
        store_on(connection, pipeline, hosts[0], address="127.0.0.1") as here,
        store_on(connection, pipeline, hosts[1]) as there,
    ):
        payload = await put(here, pipeline, rule)
        assert same(await there.value(payload, "r"))
        assert same(await here.value(payload, "r"))
        assert await Performer(connection, pipeline).present() == {}


async def test_payload_of_a_durable_edge_is_read_when_its_host_is_lost(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_RESTARTING", 0.2)
    async with store_on(connection, pipeline, hosts[1]) as there:
        async with store_on(connection, pipeline, hosts[0]) as here:
            payload = await put(here, pipeline, PayloadRule.DURABLE)
            assert [type(place) for place in payload.locations] == [MemorySlot, ObjectKey]
            assert same(await here.value(payload, "r"))
        assert same(await there.value(payload, "r"))
        assert await Performer(connection, pipeline).present() == {"r": False}, "it goes with its request"


async def test_durable_edge_stores_what_a_stage_returned_and_not_what_it_made_of_it_since(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_RESTARTING", 0.2)
    array = ARRAY.copy()
    async with store_on(connection, pipeline, hosts[1]) as there:
        async with store_on(connection, pipeline, hosts[0]) as here:
            given = await packed({"array": array})
            payload = await here.put(given, rid="r", ticket=ticket(pipeline), rule=PayloadRule.DURABLE)
            array[:] = 0  # as an engine does that uses its buffer again
        assert same(await there.value(payload, "r"))


async def test_payload_is_lost_when_its_host_is(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_RESTARTING", 0.2)
    async with store_on(connection, pipeline, hosts[1]) as there:
        async with store_on(connection, pipeline, hosts[0]) as here:
            payload = await put(here, pipeline)
        with pytest.raises(PayloadLost):
            await there.value(payload, "r")


async def test_payload_is_lost_when_its_request_has_ended_meanwhile(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    async with store_on(connection, pipeline, hosts[0]) as here, store_on(connection, pipeline, hosts[1]) as there:
        payload = await put(here, pipeline)
        here.free("r", 1)
        for reader in (here, there):
            with pytest.raises(PayloadLost):
                await reader.value(payload, "r")


async def test_reader_asks_again_when_too_many_ask_at_the_same_time(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_MOST_WAITING", 1)
    async with store_on(connection, pipeline, hosts[0]) as here, store_on(connection, pipeline, hosts[1]) as there:
        payloads = [await put(here, pipeline) for _ in range(6)]
        async with asyncio.timeout(20):  # less than a question waits for that nobody answers
            values = await asyncio.gather(*(there.value(payload, "r") for payload in payloads))
        assert all(map(same, values))


@pytest.mark.parametrize("rid", ["a.b", "*", "a b\r\nPUB x 0", ""])
async def test_nothing_is_stored_for_a_reader_that_names_no_request(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], rid: str
) -> None:
    async with store_on(connection, pipeline, hosts[0]) as here:
        payload = await put(here, pipeline)
        (slot,) = payload.locations
        assert isinstance(slot, MemorySlot)
        question = codec.encode(fetching.Fetch(rid=rid, payload=payload))
        answer = await connection.request(subjects.fetch(pipeline, slot.host), question, timeout=30)
        assert answer.data == b""
        assert await Performer(connection, pipeline).present() == {}


@pytest.mark.parametrize(("name", "nbytes"), [(None, 1 << 60), (None, -1), (None, 1 << 33), ("\0", 1), ("../x", 1)])
async def test_reader_is_refused_at_once_when_it_asks_for_what_no_slot_can_have(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path], name: str | None, nbytes: int
) -> None:
    async with store_on(connection, pipeline, hosts[0]) as here:
        (slot,) = (await put(here, pipeline)).locations
        assert isinstance(slot, MemorySlot)
        asked = MemorySlot(slot.host, name or slot.name, slot.generation)
        payload = Payload(media_type=MSGPACK, nbytes=nbytes, locations=(asked,))
        question = codec.encode(fetching.Fetch(rid="r", payload=payload))
        answer = await connection.request(subjects.fetch(pipeline, slot.host), question, timeout=10)
        assert answer.data == b""
        assert await Performer(connection, pipeline).present() == {}


async def test_object_rule_stores_an_array_that_is_read_aligned(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    async with store_on(connection, pipeline, hosts[0]) as here:
        payload = await put(here, pipeline, PayloadRule.OBJECT)
        assert [type(place) for place in payload.locations] == [ObjectKey]
        assert same(await PayloadStore(connection, pipeline).value(payload, "r"))


async def test_large_output_goes_to_the_storage_of_outputs_and_small_ones_into_the_record(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    outputs = Transports(outputs=OutputStore(f"file://{hosts[0]}"))
    store, given = (
        PayloadStore(connection, pipeline, outputs),
        {"rid": "r", "ticket": ticket(pipeline), "lasting": True},
    )
    large = await store.put(b"x" * 300_000, "image/png", **given)
    assert [type(place) for place in large.locations] == [StoredOutput]
    assert bytes(await PayloadStore(connection, pipeline, outputs).get(large)) == b"x" * 300_000
    assert (await store.put(b"x", "image/png", **given)).data == b"x"
    with pytest.raises(PayloadLost, match="OMNIBUS_OUTPUT_STORE"):
        await PayloadStore(connection, pipeline).get(large)


async def test_memory_and_what_finds_no_room_in_it_are_counted(
    connection: Connection, pipeline: str, hosts: tuple[Path, Path]
) -> None:
    def counted(name: str, **labels: str) -> float | None:
        return connection.metrics.registry.get_sample_value(f"omnibus_{name}", {"pipeline": pipeline, **labels})

    transports = Transports(memory=HostMemory(pipeline, 3 << 20, hosts[0]))
    async with PayloadStore(connection, pipeline, transports, stage="1") as store:
        payload = await put(store, pipeline)
        await store.sweep(time.time(), 60.0)
        assert (counted("payload_memory_bytes", status="held") or 0) >= ARRAY.nbytes
        await put(store, pipeline)
        assert counted("payloads_spilled_total") == 1
        made = {"stage": "1", "direction": "put"}
        assert counted("payload_bytes_total", location="memory", **made) == payload.nbytes
        assert counted("payload_bytes_total", location="object", **made) == payload.nbytes
        assert counted("payload_seconds_count", location="object", **made) == 1
        await store.get(payload)
        read = {"stage": "1", "direction": "get"}
        assert counted("payload_bytes_total", location="memory", **read) == payload.nbytes
        store.free("r", 1)
        await store.sweep(time.time(), 60.0)
        assert counted("payload_memory_bytes", status="held") == 0
        assert (counted("payload_memory_bytes", status="free") or 0) >= ARRAY.nbytes


async def test_buffer_of_a_payload_that_no_peer_has_is_free_at_once_when_no_garbage_is_collected(
    connection: Connection, pipeline: str
) -> None:
    gone = PeerSlot(host="127.0.0.1", port=free_port(), name="x", generation=1, signature=b"", proof=b"")
    payload = Payload(media_type=MSGPACK, nbytes=8 << 20, locations=(gone,))
    gc.disable()  # as good as: a process that serves collects rarely
    try:
        async with PayloadStore(connection, pipeline) as store:
            with suppress(PayloadLost):
                await store.get(payload)
            await eventually(lambda: len(store._targets._returned) == 1)
    finally:
        gc.enable()


async def test_bytes_of_an_object_that_is_refused_are_free_at_once_when_no_garbage_is_collected(
    connection: Connection, pipeline: str
) -> None:
    name, array = f"{pipeline}-full", np.zeros(1 << 20, dtype=np.uint8)
    stream = {"name": f"OBJ_{name}", "subjects": [f"$O.{name}.>"], "max_bytes": 1000, "discard": "new"}
    await connection.api(f"STREAM.CREATE.OBJ_{name}", {**stream, "allow_direct": True})
    is_there = weakref.ref(array)
    gc.disable()
    try:
        with suppress(BrokerRefused):
            await ObjectStore(connection, name).put("x", memoryview(array))
            pytest.fail("there is no room")
        del array
        await eventually(lambda: is_there() is None)
    finally:
        gc.enable()

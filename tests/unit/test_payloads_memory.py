"""Shared memory of a host: slots that are used again, readers that notice it, what the dead leave."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omnibus.errors import PayloadLost
from omnibus.payloads import pool
from omnibus.payloads.copying import copy
from omnibus.payloads.host import host_id
from omnibus.payloads.memory import HostMemory, abandoned, remove_abandoned
from omnibus.payloads.packing import Packed, unpack
from omnibus.payloads.pool import SMALLEST, Pool, size_class
from omnibus.payloads.slot import contents_of
from omnibus.payloads.targets import Targets
from omnibus.wire import codec
from omnibus.wire.payload import MSGPACK, MemorySlot

pytestmark = pytest.mark.unit

LIMIT = 8 << 20
LATER = 1e12


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[HostMemory]:
    made = HostMemory("p", LIMIT, tmp_path)
    yield made
    made.close()


def packed(value: object) -> Packed:
    return Packed.of(codec.pack_parts(value), MSGPACK)


def put(memory: HostMemory, data: bytes, rid: str = "r", run: int = 1) -> MemorySlot:
    slot = memory.put(Packed.of((data,), MSGPACK), rid=rid, run=run, expires=LATER)
    assert slot is not None
    return slot


def held(folder: Path) -> int:
    return sum(bool(found and found.generation) for found in map(contents_of, folder.iterdir()))


def test_another_process_reads_what_one_has_put(memory: HostMemory, tmp_path: Path) -> None:
    other, data = HostMemory("p", LIMIT, tmp_path), os.urandom(300_000)
    assert bytes(other.read(put(memory, data), len(data))) == data
    other.close()


def test_reader_finds_a_payload_lost_when_its_slot_was_freed_or_used_again(memory: HostMemory, tmp_path: Path) -> None:
    reader = HostMemory("p", LIMIT, tmp_path)
    first = put(memory, b"a" * SMALLEST, "first")
    assert bytes(reader.read(first, 1)) == b"a"
    memory.free("first", 1)
    with pytest.raises(PayloadLost):
        reader.read(first, SMALLEST)
    second = put(memory, b"b" * SMALLEST, "second")
    assert second.name == first.name, "slots are used again"
    with pytest.raises(PayloadLost):
        reader.read(first, SMALLEST)
    assert bytes(reader.read(second, SMALLEST)) == b"b" * SMALLEST
    reader.close()


def test_reader_finds_a_payload_lost_when_it_is_overwritten_while_it_is_copied(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = put(memory, b"a" * SMALLEST)
    meanwhile = [lambda: put(memory, b"b" * SMALLEST, "other"), lambda: memory.free("r", 1)]

    def slow_copy(target: np.ndarray, source: np.ndarray | bytes) -> None:
        while meanwhile:
            meanwhile.pop()()
        copy(target, source)

    monkeypatch.setattr("omnibus.payloads.slot.copy", slow_copy)
    with pytest.raises(PayloadLost):
        memory.read(slot, SMALLEST)


@pytest.mark.parametrize("name", ["../etc/passwd", "omnibus-000000000000-1-1-0", "omnibus-x"])
def test_name_that_is_none_of_this_hosts_slots_is_lost(memory: HostMemory, name: str) -> None:
    with pytest.raises(PayloadLost):
        memory.read(MemorySlot(memory.host, name, 1), 1)


def test_slot_of_another_pipeline_is_lost(memory: HostMemory, tmp_path: Path) -> None:
    other = HostMemory("another", LIMIT, tmp_path)
    with pytest.raises(PayloadLost, match="none of pipeline p"):
        memory.read(put(other, b"secret" * SMALLEST), SMALLEST)
    other.close()


def test_reader_of_more_bytes_than_a_payload_has_does_not_see_those_of_an_earlier_one(memory: HostMemory) -> None:
    put(memory, b"secret" * (SMALLEST // 8))
    memory.free("r", 1)
    with pytest.raises(PayloadLost, match="3 bytes"):
        memory.read(put(memory, b"abc"), 9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_sweep_goes_on_when_a_dead_process_of_another_user_left_a_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)  # as /dev/shm is
    for folder in tmp_path.parents:
        if folder.stat().st_uid == 0 and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    died(tmp_path)
    os.seteuid(65534)
    try:
        other = HostMemory("p", LIMIT, tmp_path)
        assert other.sweep(0.0, 60.0) == []
        other.close()
    finally:
        os.seteuid(0)
    assert held(tmp_path) == 2


def test_sweep_goes_on_when_somebody_has_put_a_pipe_in_the_place_of_a_slot(memory: HostMemory, tmp_path: Path) -> None:
    pipe = tmp_path / f"omnibus-{host_id(tmp_path)}-{2**22 + 1}-1-0"
    os.mkfifo(pipe)
    sweeping = threading.Thread(target=memory.sweep, args=(1.0, 1.0), daemon=True)
    sweeping.start()
    sweeping.join(10.0)
    assert not sweeping.is_alive(), "it waits for a writer"


def test_slot_that_another_user_made_is_out_of_reach_and_not_read(
    memory: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, other = put(memory, b"x" * 100), HostMemory("p", LIMIT, tmp_path)
    assert other.reaches(slot)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not other.reaches(slot)
    with pytest.raises(PayloadLost):
        other.read(slot, 100)
    assert contents_of(tmp_path / slot.name) is None
    memory.free("r", 1)
    other.close()


def test_nothing_is_put_when_memory_is_full_and_again_when_a_request_has_ended(memory: HostMemory) -> None:
    put(memory, b"x" * (LIMIT * 3 // 4), "big")
    assert memory.put(Packed.of((b"y" * (LIMIT // 2),), MSGPACK), rid="r", run=1, expires=LATER) is None
    memory.free("big", 1)
    put(memory, b"y" * (LIMIT // 2))


def test_later_run_keeps_its_payloads_when_an_earlier_one_has_ended(memory: HostMemory, tmp_path: Path) -> None:
    first, second = put(memory, b"1" * SMALLEST, run=1), put(memory, b"2" * SMALLEST, run=2)
    memory.free("r", 1)
    assert bytes(memory.read(second, 1)) == b"2"
    with pytest.raises(PayloadLost):
        memory.read(first, 1)
    memory.free("r", 2)
    assert held(tmp_path) == 0


def test_sweep_frees_what_has_expired_and_names_what_has_been_there_for_long(
    memory: HostMemory, tmp_path: Path
) -> None:
    slot = memory.put(Packed.of((b"x",), MSGPACK), rid="old", run=1, expires=1000.0)
    assert slot is not None
    assert memory.sweep(now=999.0, age=60.0) == []
    assert memory.sweep(now=999.0, age=-1.0) == ["old"]
    assert memory.sweep(now=1000.0, age=-1.0) == []
    assert held(tmp_path) == 0


def test_free_slots_are_removed_when_they_are_idle_for_long(
    memory: HostMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, b"x" * SMALLEST)
    memory.free("r", 1)
    memory.sweep(0.0, 60.0)
    assert len(list(tmp_path.iterdir())) == 2, "the slot, and the sign that the process is there"
    monkeypatch.setattr(pool, "IDLE", -1.0)
    memory.sweep(0.0, 60.0)
    assert len(list(tmp_path.iterdir())) == 1


def _put_and_die(folder: Path, expires: float) -> None:
    dying = HostMemory("p", LIMIT, folder)
    for rid in ("mine", "other"):
        assert dying.put(Packed.of((rid.encode() * SMALLEST,), MSGPACK), rid=rid, run=1, expires=expires) is not None
    os.kill(os.getpid(), signal.SIGKILL)


def died(folder: Path, expires: float = LATER) -> int:
    """The id of a process that had two payloads in memory."""
    process = multiprocessing.get_context("fork").Process(target=_put_and_die, args=(folder, expires))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert process.pid is not None
    return process.pid


def test_payload_of_a_dead_process_is_read_until_its_request_ends(memory: HostMemory, tmp_path: Path) -> None:
    died(tmp_path)
    left = {found.rid: name for name, found in abandoned(tmp_path) if found is not None and found.generation}
    assert sorted(memory.sweep(0.0, 60.0)) == ["mine", "other"], "an orchestrator is to be asked about them"
    assert bytes(memory.read(MemorySlot(memory.host, left["mine"], 1), 4)) == b"mine"
    memory.free("mine", 1)
    assert [found.rid for _, found in abandoned(tmp_path) if found] == ["other"]
    assert memory.sweep(0.0, 60.0) == ["other"]


def test_payload_of_a_dead_process_goes_when_it_has_expired_whatever_pipeline_it_was_of(tmp_path: Path) -> None:
    died(tmp_path, expires=1000.0)
    other = HostMemory("another", LIMIT, tmp_path)
    other.sweep(999.0, 60.0)
    assert held(tmp_path) == 2
    other.sweep(1000.0, 60.0)
    assert held(tmp_path) == 0
    other.close()


def test_supervisor_removes_what_its_children_left_unless_others_serve_their_pipeline(tmp_path: Path) -> None:
    pid = died(tmp_path)
    remove_abandoned({pid + 1}, tmp_path)
    assert held(tmp_path) == 2, "they are no children of its"
    beside = HostMemory("p", LIMIT, tmp_path)
    remove_abandoned({pid}, tmp_path)
    assert held(tmp_path) == 2
    beside.close()
    remove_abandoned({pid}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pool_keeps_what_a_request_needs_when_it_is_closed(tmp_path: Path) -> None:
    closing = HostMemory("p", LIMIT, tmp_path)
    put(closing, b"x" * SMALLEST, "kept")
    put(closing, b"x" * SMALLEST, "over")
    closing.free("over", 1)
    closing.close()
    assert [found.rid for found in map(contents_of, tmp_path.iterdir()) if found] == ["kept"]


@pytest.mark.parametrize("nbytes", [0, 1, SMALLEST, SMALLEST + 1, 300_000, 64 << 20, (64 << 20) + 70])
def test_size_class_loses_at_most_a_quarter(nbytes: int) -> None:
    assert nbytes <= size_class(nbytes) <= max(SMALLEST, nbytes * 5 // 4 + 1)
    assert size_class(size_class(nbytes)) == size_class(nbytes)


def test_slot_of_no_room_takes_nothing(tmp_path: Path) -> None:
    full = Pool("p", SMALLEST, tmp_path)
    assert full.put(Packed.of((b"x" * SMALLEST,), MSGPACK), rid="r", run=1, expires=LATER) is None
    assert len(list(tmp_path.iterdir())) == 1
    full.close()


def test_large_array_is_aligned_wherever_it_stands_in_its_value(memory: HostMemory) -> None:
    given = packed({"before": "text" * 7, "array": np.arange(100_000, dtype=np.float64)})
    slot = memory.put(given, rid="r", run=1, expires=LATER)
    assert slot is not None
    found = unpack(memory.read(slot, given.nbytes, given.lead), MSGPACK)["array"]
    assert found.ctypes.data % 64 == 0
    np.testing.assert_array_equal(found, np.arange(100_000))


def test_copy_is_quick_only_when_it_is_small_and_its_slot_was_used_before(memory: HostMemory, tmp_path: Path) -> None:
    reader, nbytes = HostMemory("p", LIMIT, tmp_path), 1 << 20
    assert not memory.is_quick(nbytes)
    slot = put(memory, b"x" * nbytes)
    assert not reader.is_quick(nbytes, slot)
    reader.read(slot, nbytes)
    assert reader.is_quick(nbytes, slot)
    assert not memory.is_quick(nbytes), "the slot is in use"
    memory.free("r", 1)
    assert memory.is_quick(nbytes)
    put(memory, b"x" * (3 << 20))
    memory.free("r", 1)
    assert not memory.is_quick(3 << 20)
    reader.close()


def test_nothing_is_put_when_the_system_has_no_room(memory: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as no_room:
        no_room.setattr(os, "posix_fallocate", full)
        assert memory.put(Packed.of((b"x",), MSGPACK), rid="r", run=1, expires=LATER) is None
    put(memory, b"x")


def test_payload_is_read_into_a_given_buffer(memory: HostMemory) -> None:
    slot, target = put(memory, b"abc" * SMALLEST), bytearray(3 * SMALLEST)
    memory.read(slot, len(target), into=memoryview(target))
    assert target == b"abc" * SMALLEST


def test_buffer_is_used_again_only_when_nothing_views_it() -> None:
    targets = Targets(64 << 20)
    first = np.frombuffer(targets.take(2 << 20, 0)[100:], dtype=np.uint8)  # a view of a view
    place = first.ctypes.data
    second = np.frombuffer(targets.take(2 << 20, 0), dtype=np.uint8)
    assert abs(second.ctypes.data - place) > 1 << 20
    del first
    gc.collect()
    third = np.frombuffer(targets.take(2 << 20, 0)[100:], dtype=np.uint8)
    assert third.ctypes.data == place


def test_unused_buffers_are_bounded() -> None:
    targets = Targets(3 << 20)
    for lent in [targets.take(2 << 20, 0) for _ in range(3)]:
        del lent
    gc.collect()
    targets.trim()
    assert targets._idle <= 3 << 20


@pytest.mark.parametrize("nbytes", [-1, 101, 1 << 60])
def test_nothing_is_allocated_when_a_reader_names_more_bytes_than_a_slot_has(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch, nbytes: int
) -> None:
    slot = memory.put(Packed.of((bytes(100),), MSGPACK), rid="r", run=1, expires=LATER)
    assert slot is not None
    monkeypatch.setattr(memory._targets, "take", lambda *_: pytest.fail("a buffer was taken"))
    with pytest.raises(PayloadLost, match=f"has 100 bytes and not {nbytes}"):
        memory.read(slot, nbytes)

"""Payloads that a process serves over TCP: only to readers that it has referred, and only while they are what they were."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from omnibus.errors import PayloadLost
from omnibus.payloads import peer
from omnibus.payloads.memory import HostMemory
from omnibus.payloads.packing import Packed
from omnibus.payloads.peer import PeerServer, pull
from omnibus.wire.payload import MSGPACK, PeerSlot

pytestmark = pytest.mark.unit

DATA = os.urandom(3_000_000)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[HostMemory]:
    made = HostMemory("p", 32 << 20, tmp_path)
    yield made
    made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PeerServer]:
    made = PeerServer("127.0.0.1", tmp_path)
    yield made
    made.close()


def served(memory: HostMemory, server: PeerServer) -> PeerSlot:
    slot = memory.put(Packed.of((DATA,), MSGPACK), rid="r", run=1, expires=1e12)
    assert slot is not None
    return server.location(slot, len(DATA))


def pulled(location: PeerSlot, nbytes: int = len(DATA)) -> bytearray:
    target = bytearray(nbytes)
    pull(location, memoryview(target))
    return target


def test_reader_pulls_what_it_was_referred_to(memory: HostMemory, server: PeerServer) -> None:
    location = served(memory, server)
    assert pulled(location) == DATA
    assert pulled(location) == DATA, "as often as it wants"


def test_nothing_is_served_when_the_signature_is_of_another_payload(memory: HostMemory, server: PeerServer) -> None:
    location = served(memory, server)
    with pytest.raises(PayloadLost):
        pulled(replace(location, signature=bytes(16)))
    with pytest.raises(PayloadLost):
        pulled(replace(location, generation=location.generation + 1))
    with pytest.raises(PayloadLost):
        pulled(location, len(DATA) - 1)
    assert pulled(location) == DATA, "the server serves on"


def test_server_serves_on_when_its_process_could_open_no_more_for_a_while(
    memory: HostMemory, server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, accept, failures = served(memory, server), socket.socket.accept, [OSError(errno.EMFILE, "too many")] * 2

    def accept_later(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    assert [pulled(location) == DATA for _ in range(2)] == [True, True], "the first was being accepted already"
    assert not failures


def test_payload_is_lost_when_it_was_freed(memory: HostMemory, server: PeerServer) -> None:
    location = served(memory, server)
    memory.free("r", 1)
    with pytest.raises(PayloadLost):
        pulled(location)


def test_payload_is_lost_when_it_is_freed_while_it_is_sent(
    memory: HostMemory, server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, holds = served(memory, server), peer._holds

    def holds_until_now(path: Path, generation: int) -> bool:
        held = holds(path, generation)
        memory.free("r", 1)
        return held

    monkeypatch.setattr(peer, "_holds", holds_until_now)
    with pytest.raises(PayloadLost):
        pulled(location)


def test_payload_is_lost_when_its_peer_has_gone(memory: HostMemory, server: PeerServer) -> None:
    location = served(memory, server)
    server.close()
    with pytest.raises(PayloadLost):
        pulled(location)


@pytest.mark.parametrize("answer", [DATA + bytes(16), DATA[:-1], DATA + b"\x01", b"", bytes(4_000_000)])
def test_payload_is_lost_when_another_process_has_the_port_of_its_peer(
    memory: HostMemory, server: PeerServer, answer: bytes
) -> None:
    location = served(memory, server)
    with socket.create_server(("127.0.0.1", 0)) as impostor, ThreadPoolExecutor(1) as answering:

        def answer_one() -> None:
            reader, _ = impostor.accept()
            with reader, suppress(OSError):
                reader.recv(1 << 16)
                reader.sendall(answer)

        answered = answering.submit(answer_one)
        with pytest.raises(PayloadLost):
            pulled(replace(location, port=impostor.getsockname()[1]))
        answered.result(30)


def test_question_that_comes_byte_by_byte_is_cut_off(
    memory: HostMemory, server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_QUESTION_TIMEOUT", 0.5)
    location = served(memory, server)
    with socket.create_connection((location.host, location.port), timeout=30) as drip:
        started = time.monotonic()
        with suppress(ConnectionError):
            drip.settimeout(0.05)
            while time.monotonic() < started + 30:
                drip.sendall(b"x")
                try:
                    if not drip.recv(1):
                        break
                except TimeoutError:
                    continue
        assert time.monotonic() - started < 4, "though a byte came every 50 ms"


def test_slow_or_silent_reader_holds_up_nobody_else(
    memory: HostMemory, server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "_QUESTION_TIMEOUT", 0.2)
    location = served(memory, server)
    silent = [socket.create_connection((location.host, location.port)) for _ in range(peer._MOST_READERS)]
    try:
        assert pulled(location) == DATA
    finally:
        for one in silent:
            one.close()


def test_server_cannot_listen_when_the_address_is_none_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="assign"):
        PeerServer("203.0.113.7", tmp_path)

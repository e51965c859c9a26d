"""Payloads pulled from the process that has them, over TCP: for readers on other hosts.

A reader names a slot, and proves by a signature of its maker that it was referred to it. The answer is the bytes, straight from
the slot's file, and at the end a proof that its maker found them that payload's all the time: another process may have the port
of one that died. Nothing else can be asked for.

The socket is neither encrypted nor for everybody: it listens on one address, of a network that its operator trusts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from omnibus.errors import PayloadLost
from omnibus.payloads.host import SHARED_MEMORY
from omnibus.payloads.slot import HEADER, contents_of, opened, owner_of
from omnibus.wire.payload import MemorySlot, PeerSlot

_QUESTION = struct.Struct("!64s16sQQ")  # name, signature, generation, bytes
_SIGNATURE = 16
_CONNECT_TIMEOUT, _QUESTION_TIMEOUT, _TIMEOUT = 2.0, 2.0, 15.0
"""Seconds for a connection, for the question on it, and without a single byte after that."""
_BUFFER = 4 << 20
"""Bytes that the kernel buffers of a connection, each way: with its default, 64 MiB take a thousand wake-ups, twice the time."""
_PIECE = 4 << 20
_PAUSE = 0.2
"""Seconds before the next try to accept a reader, when one has failed."""
_MOST_READERS = 8
"""Readers that one process serves at the same time; others wait for their turn."""
_MOST_WAITING = 64
"""Readers that wait; those beyond are sent away, and find another place."""


class PeerServer:
    """Serves the slots of this host to readers elsewhere, from threads of its own, until it is closed."""

    def __init__(self, host: str, folder: Path = SHARED_MEMORY) -> None:
        """Raises OSError when the address is none of this machine, or all of them, which readers cannot be referred to."""
        if host in ("0.0.0.0", "::"):  # noqa: S104 it is refused
            raise OSError("it stands for all addresses of a machine")
        self._folder, self._key = folder, secrets.token_bytes(32)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=64)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)  # what it accepts inherits this
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._room = threading.BoundedSemaphore(_MOST_READERS + _MOST_WAITING)
        self._readers = ThreadPoolExecutor(_MOST_READERS, "payload-peer")
        self._accepting = threading.Thread(target=self._accept, name="payload-peer-accept", daemon=True)
        self._accepting.start()

    def location(self, slot: MemorySlot, nbytes: int) -> PeerSlot:
        """Refer to a slot of this host."""
        signature, proof = (self._sign(of, slot.name, slot.generation, nbytes) for of in ("question", "answer"))
        return PeerSlot(
            host=self.host, port=self.port, name=slot.name, generation=slot.generation, signature=signature, proof=proof
        )

    def close(self) -> None:
        """Serve no more readers; those that are at it see that it ended."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _sign(self, of: str, name: str, generation: int, nbytes: int) -> bytes:
        return hmac.digest(self._key, f"{of} {name} {generation} {nbytes}".encode(), hashlib.sha256)[:_SIGNATURE]

    def _accept(self) -> None:
        while self._socket.fileno() >= 0:
            try:
                reader, _ = self._socket.accept()
            except OSError:  # it is closed, or its process may open no more: readers who are referred to it would wait
                time.sleep(_PAUSE)
                continue
            try:
                if self._room.acquire(blocking=False):
                    self._readers.submit(self._serve, reader).add_done_callback(lambda _: self._room.release())
                else:
                    reader.close()
            except RuntimeError:  # closed
                reader.close()
                return

    def _serve(self, reader: socket.socket) -> None:
        with reader, suppress(OSError):  # a reader that leaves, or is too slow, finds another place
            _set_timeout(reader, _QUESTION_TIMEOUT)
            question = bytearray(_QUESTION.size)
            if reader.recv_into(question, 0, socket.MSG_WAITALL) < len(question):
                return
            field, signature, generation, nbytes = _QUESTION.unpack(question)
            name = field.rstrip(b"\0").decode(errors="replace")
            if not hmac.compare_digest(signature, self._sign("question", name, generation, nbytes)):
                return
            reader.settimeout(_TIMEOUT)
            self._send(reader, name, generation, nbytes)

    def _send(self, reader: socket.socket, name: str, generation: int, nbytes: int) -> None:
        path = self._folder / name
        if owner_of(name, self._folder) is None or not _holds(path, generation):
            return
        with os.fdopen(opened(path), "rb") as file:
            reader.sendfile(file, HEADER, nbytes)
        if _holds(path, generation):
            reader.sendall(self._sign("answer", name, generation, nbytes))


def pull(slot: PeerSlot, into: memoryview) -> None:
    """Copy a payload from its peer, for a thread; raises PayloadLost when the peer is gone, or has it no more."""
    where = f"{slot.host}:{slot.port}"
    try:
        with _connected(slot.host, slot.port) as peer:
            peer.sendall(_QUESTION.pack(slot.name.encode(), slot.signature, slot.generation, len(into)))
            _receive(peer, into)
            proof = bytearray(_SIGNATURE)
            _receive(peer, memoryview(proof))
    except OSError as error:
        raise PayloadLost(f"the peer at {where} does not have a payload: {error}") from error
    if not hmac.compare_digest(proof, slot.proof):
        raise PayloadLost(f"another process is at {where} now")


def _connected(host: str, port: int) -> socket.socket:
    """A connection whose reads wait in the kernel until all is there, or nothing came for so long."""
    peer = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        peer.settimeout(_CONNECT_TIMEOUT)
        peer.connect((host, port))
        _set_timeout(peer, _TIMEOUT)
    except OSError:
        peer.close()
        raise
    return peer


def _set_timeout(one: socket.socket, seconds: float) -> None:
    """Have the kernel wait for all that a read asks for, and so long at most."""
    one.settimeout(None)
    whole = int(seconds)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        one.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, int((seconds - whole) * 1e6)))


def _receive(source: socket.socket, into: memoryview) -> None:
    at = 0
    while at < len(into):
        count = source.recv_into(into[at : at + _PIECE], 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError(f"it ended after {at} of {len(into)} bytes")
        at += count


def _holds(path: Path, generation: int) -> bool:
    found = contents_of(path)
    return found is not None and found.generation == generation

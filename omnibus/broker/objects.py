"""Payloads in an object store: bytes in, bytes out.

Kept in NATS' own object store format, so that its tools read them. Reading takes the chunks by direct batch get: a
64 MB object in a tenth of a second, where the client library's consumer takes seconds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import ParamSpec, TypeVar

import msgspec

from omnibus.broker.connection import Connection, status_of
from omnibus.errors import BrokerUnavailable, PayloadLost
from omnibus.wire.arriving_bytes import ArrivingBytes
from omnibus.wire.codec import Buffer

CHUNK = 128 * 1024
WINDOW = 32
"""Chunks that await their acknowledgement: 4 MiB."""
CHUNK_NUMBER = "Omni-Chunk"
"""Header of a chunk: its place in the object, from 0."""
_HEAVY = 256 * 1024  # bytes from which a digest or a copy is work for a thread
_BATCH_BYTES = 16 << 20  # of one batch get; bounds what may wait unread
_END_OF_BATCH = "204"
_NOT_FOUND = "404"
_DEFAULT_DEADLINE = 60.0

Headers = Mapping[str, str] | None
P = ParamSpec("P")
T = TypeVar("T")


class _Options(msgspec.Struct, kw_only=True):
    max_chunk_size: int = CHUNK


class ObjectInfo(msgspec.Struct, kw_only=True):
    """Metadata of an object, as NATS writes it."""

    name: str
    bucket: str = ""
    nuid: str = ""
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False
    metadata: dict[str, str] = {}
    options: _Options = msgspec.field(default_factory=_Options)


class ObjectStore:
    """One object store. Every method has a deadline in seconds and raises BrokerUnavailable."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, name
        self._stream = f"OBJ_{name}"

    async def put(self, name: str, *parts: Buffer, group: str = "", deadline: float = _DEFAULT_DEADLINE) -> None:
        """Store an object of these parts; one of the same name is replaced. It can be read only once all of it is stored.

        `group`, one token of a subject, is what `purge_group` removes together.
        """
        nuid = self.new_nuid(group)
        async with within(deadline, f"object {name} was not stored"):
            old = await self.info(name)
            chunks, size = await self._put_chunks(nuid, parts), _total(parts)
            digest = await _in_thread(size, _digest, parts)
            info = ObjectInfo(name=name, bucket=self.name, nuid=nuid, size=size, chunks=chunks, digest=digest)
            await self.put_info(info)
            if old is not None:
                await self.purge_chunks(old.nuid)

    async def get(
        self, name: str, *, into: memoryview | None = None, deadline: float = _DEFAULT_DEADLINE
    ) -> bytes | memoryview:
        """The whole object, in a buffer of its size where one is given; raises PayloadLost when it is not what was stored."""
        async with within(deadline, f"object {name} was not read"):
            info = await self.info(name)
            if info is None:
                raise PayloadLost(f"object {name} is not in store {self.name}")
            return await self._get_chunks(info, into)

    async def delete(self, name: str, *, deadline: float = _DEFAULT_DEADLINE) -> None:
        """Remove an object; idempotent."""
        async with within(deadline, f"object {name} was not deleted"):
            info = await self.info(name)
            if info is not None:
                await self.connection.api(f"STREAM.PURGE.{self._stream}", {"filter": self._meta_subject(name)})
                await self.purge_chunks(info.nuid)

    async def purge_group(self, group: str) -> None:
        """Free the bytes of every object of a group, in one request; idempotent. Their metadata stays until it expires."""
        await self.purge_chunks(f"{group}.*")

    async def groups(self) -> set[str]:
        """Groups that have bytes stored; the answer grows with their number."""
        found = await self.connection.stored_subjects(self._stream, self._chunk_subject("*.*"))
        return {subject.split(".")[-2] for subject in found}

    def new_nuid(self, group: str = "") -> str:
        """A name for the chunks of one object."""
        unique = self.connection.new_inbox().rpartition(".")[2]
        return f"{group}.{unique}" if group else unique

    async def _put_chunks(self, nuid: str, parts: Sequence[Buffer]) -> int:
        chunks, count = _chunks(parts), 0
        # Order is the order of publishing: each window is sent in order over one connection, and awaited.
        while window := list(itertools.islice(chunks, WINDOW)):
            await self.put_window(nuid, window, count)
            count += len(window)
        return count

    async def put_window(self, nuid: str, chunks: list[bytes], number: int, headers: Headers = None) -> int:
        """Store chunks, of which the first has this number; returns the lowest of their sequences.

        One that had to be sent again may lie behind those that followed it.
        """
        subject = self._chunk_subject(nuid)
        storing = (
            self.connection.js_publish(
                subject, chunk, f"{nuid}.{count}", headers={**(headers or {}), CHUNK_NUMBER: str(count)}
            )
            for count, chunk in enumerate(chunks, number)
        )
        ended = await asyncio.gather(*storing, return_exceptions=True)
        failures = [one for one in ended if isinstance(one, BaseException)]
        if failures:
            # Of nothing that refers to it, such as a group: that would keep the whole object until garbage is collected.
            del ended
            raise failures.pop(0)
        return min(ack.seq for ack in ended if not isinstance(ack, BaseException))

    async def _get_chunks(self, info: ObjectInfo, into: memoryview | None) -> bytes | memoryview:
        """Assemble an object a batch at a time, so that no more than a batch of it is in memory twice."""
        assembly, last, left = _Assembly(info, into), 0, info.chunks
        while left:
            chunks: dict[int, bytes] = {}  # by sequence, in order
            await self.connection.retried(partial(self._get_batch, info, chunks, last, left))
            if not chunks:
                raise PayloadLost(f"object {info.name} in store {self.name} lost {left} chunks")
            await _in_thread(_total(chunks.values()), assembly.add, chunks.values())
            last, left = max(chunks), left - len(chunks)
        return assembly.checked()

    async def _get_batch(self, info: ObjectInfo, chunks: dict[int, bytes], last: int, left: int) -> None:
        """Fill `chunks` with those behind `last`; what arrived before an outage stays, so that another try goes on behind it."""
        first, count = max(chunks, default=last) + 1, left - len(chunks)
        async with aclosing(self.stored_chunks(info.nuid, first, count)) as found:
            async for seq, _, chunk in found:
                chunks[seq] = chunk  # noqa: PERF403 those before an outage count

    async def stored_chunks(self, nuid: str, first: int, count: int) -> AsyncGenerator[tuple[int, int, bytes]]:
        """Sequence, number and bytes of an object's chunks from a sequence on, at most so many, and those of a batch."""
        body = {"seq": first, "next_by_subj": self._chunk_subject(nuid), "batch": count, "max_bytes": _BATCH_BYTES}
        request = self.connection.request_many(f"$JS.API.DIRECT.GET.{self._stream}", msgspec.json.encode(body))
        async with aclosing(request) as answers:
            async for message in answers:
                if status_of(message) in (_END_OF_BATCH, _NOT_FOUND):
                    return
                headers = message.headers or {}
                yield int(headers["Nats-Sequence"]), int(headers.get(CHUNK_NUMBER, 0)), message.data

    async def info(self, name: str) -> ObjectInfo | None:
        """The metadata of an object; None where there is none."""
        message = await self.connection.retried_request(f"$JS.API.DIRECT.GET.{self._stream}.{self._meta_subject(name)}")
        if status_of(message) == _NOT_FOUND or not message.data:
            return None
        info = msgspec.json.decode(message.data, type=ObjectInfo)
        return None if info.deleted else info

    async def put_info(self, info: ObjectInfo, headers: Headers = None) -> None:
        """Make an object readable, or replace what there is of its name."""
        stamped = msgspec.structs.replace(info, mtime=datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        rollup = {**(headers or {}), "Nats-Rollup": "sub"}
        await self.connection.js_publish(self._meta_subject(info.name), msgspec.json.encode(stamped), headers=rollup)

    async def purge_chunks(self, nuid: str) -> None:
        """Free the bytes of an object, whose metadata stays."""
        await self.connection.api(f"STREAM.PURGE.{self._stream}", {"filter": self._chunk_subject(nuid)})

    def _chunk_subject(self, nuid: str) -> str:
        return f"$O.{self.name}.C.{nuid}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


@asynccontextmanager
async def within(deadline: float, what: str) -> AsyncIterator[None]:
    """Raise BrokerUnavailable when the deadline, in seconds, passes."""
    try:
        async with asyncio.timeout(deadline):
            yield
    except TimeoutError as error:
        raise BrokerUnavailable(f"{what} within {deadline:g} s") from error


async def _in_thread(size: int, act: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do what takes long with so many bytes, where the loop would stand still."""
    return await asyncio.to_thread(act, *arguments, **named) if size > _HEAVY else act(*arguments, **named)


def _chunks(parts: Iterable[Buffer]) -> Iterator[bytes]:
    chunk = bytearray()
    for part in parts:
        left = memoryview(part)
        while left:
            taken, left = left[: CHUNK - len(chunk)], left[CHUNK - len(chunk) :]
            if len(taken) == CHUNK:  # copied once
                yield bytes(taken)
                continue
            chunk += taken
            if len(chunk) == CHUNK:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)


class _Assembly:
    """An object on its way, checked against what was stored; any method raises PayloadLost. For threads, one at a time."""

    def __init__(self, info: ObjectInfo, into: memoryview | None) -> None:
        self._info, self._digest = info, hashlib.sha256()
        with self._damaged():
            self._bytes = ArrivingBytes(info.size, into)

    def add(self, chunks: Iterable[bytes]) -> None:
        with self._damaged():
            for chunk in chunks:
                self._bytes.add(chunk)
                self._digest.update(chunk)

    def checked(self) -> bytes | memoryview:
        with self._damaged():
            if digest_name(self._digest) != self._info.digest:
                raise ValueError("its digest is another")
            return self._bytes.whole()

    @contextmanager
    def _damaged(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise PayloadLost(f"object {self._info.name} in store {self._info.bucket} is damaged: {error}") from error


def _digest(parts: Iterable[Buffer]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return digest_name(found)


def digest_name(digest: hashlib._Hash) -> str:
    """A digest as NATS writes it."""
    return f"SHA-256={base64.urlsafe_b64encode(digest.digest()).decode()}"


def _total(parts: Iterable[Buffer]) -> int:
    return sum(map(len, parts))

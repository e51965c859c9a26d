"""Payloads in an object store: bytes in, bytes out.

Kept in NATS' own object store format, so that its tools read them. Reading takes the chunks by direct batch get: a
64 MB object in a tenth of a second, where the client library's consumer takes seconds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import msgspec

from omnibus.broker.connection import Connection, status_of
from omnibus.errors import BrokerUnavailable, PayloadLost

_CHUNK = 128 * 1024
_WINDOW = 32  # chunks awaiting their acknowledgement: 4 MiB
_BATCH_BYTES = 16 << 20  # of one batch get; bounds what may wait unread
_END_OF_BATCH = "204"
_NOT_FOUND = "404"
_DEFAULT_DEADLINE = 60.0


class _Options(msgspec.Struct, kw_only=True):
    max_chunk_size: int = _CHUNK


class _Info(msgspec.Struct, kw_only=True):
    """Metadata of an object, as NATS writes it."""

    name: str
    bucket: str = ""
    nuid: str = ""
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False
    options: _Options = msgspec.field(default_factory=_Options)


class ObjectStore:
    """One object store. Every method has a deadline in seconds and raises BrokerUnavailable."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name
        self._stream = f"OBJ_{name}"

    async def put(
        self, name: str, data: bytes | memoryview, *, group: str = "", deadline: float = _DEFAULT_DEADLINE
    ) -> None:
        """Store an object; one of the same name is replaced. It can be read only once all of it is stored.

        `group`, one token of a subject, is what `purge_group` removes together.
        """
        unique = self._connection.new_inbox().rpartition(".")[2]
        nuid = f"{group}.{unique}" if group else unique
        async with _within(deadline, f"object {name} was not stored"):
            old = await self._info(name)
            chunks = await self._put_chunks(nuid, memoryview(data))
            info = _Info(name=name, bucket=self.name, nuid=nuid, size=len(data), chunks=chunks, digest=_digest(data))
            await self._put_info(info)
            if old is not None:
                await self._purge_chunks(old.nuid)

    async def get(self, name: str, *, deadline: float = _DEFAULT_DEADLINE) -> bytes:
        """The whole object; raises PayloadLost when there is none, or when it is not what was stored."""
        async with _within(deadline, f"object {name} was not read"):
            info = await self._info(name)
            if info is None:
                raise PayloadLost(f"object {name} is not in store {self.name}")
            data = b"".join(await self._get_chunks(info))
        if len(data) != info.size or _digest(data) != info.digest:
            raise PayloadLost(f"object {name} in store {self.name} is damaged: {len(data)} of {info.size} bytes")
        return data

    async def delete(self, name: str, *, deadline: float = _DEFAULT_DEADLINE) -> None:
        """Remove an object; idempotent."""
        async with _within(deadline, f"object {name} was not deleted"):
            info = await self._info(name)
            if info is not None:
                await self._connection.api(f"STREAM.PURGE.{self._stream}", {"filter": self._meta_subject(name)})
                await self._purge_chunks(info.nuid)

    async def purge_group(self, group: str) -> None:
        """Free the bytes of every object of a group, in one request; idempotent. Their metadata stays until it expires."""
        await self._purge_chunks(f"{group}.*")

    async def groups(self) -> set[str]:
        """Groups that have bytes stored; the answer grows with their number."""
        found = await self._connection.stored_subjects(self._stream, self._chunk_subject("*.*"))
        return {subject.split(".")[-2] for subject in found}

    async def _put_chunks(self, nuid: str, data: memoryview) -> int:
        subject = self._chunk_subject(nuid)
        starts = range(0, len(data), _CHUNK)
        # Order is the order of publishing: each window is sent in order over one connection, and awaited.
        for first in range(0, len(starts), _WINDOW):
            window = starts[first : first + _WINDOW]
            await self._put_window(
                subject, [bytes(data[start : start + _CHUNK]) for start in window], f"{nuid}.{first}"
            )
        return len(starts)

    async def _put_window(self, subject: str, chunks: list[bytes], msg_id: str) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number, chunk in enumerate(chunks):
                    group.create_task(self._connection.js_publish(subject, chunk, f"{msg_id}.{number}"))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _get_chunks(self, info: _Info) -> Iterable[bytes]:
        chunks: dict[int, bytes] = {}  # by sequence, in order
        while len(chunks) < info.chunks:
            known = len(chunks)
            await self._connection.retried(lambda: self._get_batch(info, chunks))
            if len(chunks) == known:
                raise PayloadLost(f"object {info.name} in store {self.name} lost {info.chunks - known} chunks")
        return chunks.values()

    async def _get_batch(self, info: _Info, chunks: dict[int, bytes]) -> None:
        """Add one batch to `chunks`; what arrived before an outage stays, so that another try goes on behind it."""
        body = {
            "seq": max(chunks, default=0) + 1,
            "next_by_subj": self._chunk_subject(info.nuid),
            "batch": info.chunks - len(chunks),
            "max_bytes": _BATCH_BYTES,
        }
        request = self._connection.request_many(f"$JS.API.DIRECT.GET.{self._stream}", msgspec.json.encode(body))
        async with aclosing(request) as answers:
            async for message in answers:
                if status_of(message) in (_END_OF_BATCH, _NOT_FOUND):
                    return
                chunks[int((message.headers or {})["Nats-Sequence"])] = message.data

    async def _info(self, name: str) -> _Info | None:
        message = await self._connection.retried_request(
            f"$JS.API.DIRECT.GET.{self._stream}.{self._meta_subject(name)}"
        )
        if status_of(message) == _NOT_FOUND or not message.data:
            return None
        info = msgspec.json.decode(message.data, type=_Info)
        return None if info.deleted else info

    async def _put_info(self, info: _Info) -> None:
        stamped = msgspec.structs.replace(info, mtime=datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        headers = {"Nats-Rollup": "sub"}
        await self._connection.js_publish(self._meta_subject(info.name), msgspec.json.encode(stamped), headers=headers)

    async def _purge_chunks(self, nuid: str) -> None:
        await self._connection.api(f"STREAM.PURGE.{self._stream}", {"filter": self._chunk_subject(nuid)})

    def _chunk_subject(self, nuid: str) -> str:
        return f"$O.{self.name}.C.{nuid}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


@asynccontextmanager
async def _within(deadline: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline):
            yield
    except TimeoutError as error:
        raise BrokerUnavailable(f"{what} within {deadline:g} s") from error


def _digest(data: bytes | memoryview) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()}"

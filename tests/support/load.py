"""Requests over both doors at once, from producers that know only what a producer can know.

A producer that got no answer does not know whether its request was accepted: it asks again under the same id, until it is
told. What it was told is accepted; what became of it is read from the ledger in the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx
import msgspec

from omnibus.broker.connection import Connection
from omnibus.broker.watch import Watch
from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.errors import BrokerUnavailable, UnknownRequest
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.record import Record
from omnibus.wire import codec, stores, subjects
from omnibus.wire.request import Request
from tests.support.waiting import eventually

_PAUSE = 0.05


@dataclass
class Load:
    """Producers over HTTP and over the raw subject, in an `async with`; they go on until `finish`."""

    connection: Connection
    spec: PipelineSpec
    url: str
    http_callers: int = 12
    raw_pause: float = 0.04
    """Seconds between two raw requests."""
    prompt: Callable[[int], str] = "request {} says hello".format
    """The text of the n-th request."""
    modalities: tuple[str, ...] | None = None
    """Outputs to ask for; None: what each door gives unasked."""
    within: float = 45.0
    """Seconds within which every request must be answered, faults included."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Prompt of every accepted request, by id."""
    answers: dict[str, object] = field(default_factory=dict)
    """The content that HTTP callers were answered, by id."""
    retries: int = 0

    def __post_init__(self) -> None:
        self._finishing = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._ends: dict[str, list[int]] = {}
        self._watch = Watch(self.connection, stores.requests_bucket(self.spec.name), self._changed)
        self._count = 0

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        await self._group.__aenter__()
        for number in range(self.http_callers):
            self._group.create_task(self._call(), name=f"caller-{number}")
        self._group.create_task(self._publish(), name="raw-producer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finishing.set()
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            await self._watch.__aexit__(None, None, None)

    @property
    def ended(self) -> int:
        """Requests whose end was written."""
        return len(self._ends)

    async def more(self, count: int) -> None:
        """Return once `count` more requests have ended; more than that are under way then."""
        enough = self.ended + count
        await eventually(
            lambda: self.ended >= enough, self.within, what=f"{count} more requests ended, {self.ended} had"
        )

    def finish(self) -> None:
        """Send nothing new; leaving the context waits for the answers."""
        self._finishing.set()

    async def results(self) -> dict[str, Result]:
        """Every accepted request as its record says, once it has ended; fails when one is unknown, or stays open."""
        async with Producer(self.connection) as producer, asyncio.timeout(self.within):
            found = {}
            for rid in self.prompts:
                await eventually(lambda rid=rid: _known(producer, self.spec.name, rid), 20, what=f"a record of {rid}")
                found[rid] = await producer.wait(self.spec.name, rid)
        return found

    async def check_ended_once(self) -> None:
        """Every record was written in a terminal state once, and never again."""
        await eventually(lambda: self._watch.synced, what="the watch is up to date")
        again = {rid: revisions for rid, revisions in self._ends.items() if len(revisions) > 1}
        assert not again, f"written again after the end: {again}"

    async def check_nothing_queued(self, timeout: float = 10.0) -> None:
        """No task, event or timer, and no raw request, is left."""

        async def empty() -> bool:
            raw = await self.connection.api(f"STREAM.INFO.{stores.requests_stream(self.spec.name)}")
            return (await WorkQueue(self.connection, self.spec.name).traffic()).messages == 0 and raw["state"][
                "messages"
            ] == 0

        try:
            await eventually(empty, timeout)
        except AssertionError:
            stream = stores.work_stream(self.spec.name)
            left = await self.connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
            raise AssertionError(f"still queued: {left['state'].get('subjects')}") from None

    # Over HTTP

    async def _call(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=self.within) as client:
            while not self._finishing.is_set():
                self._count += 1
                await self._ask(client, f"key-{self._count}", self.prompt(self._count))

    async def _ask(self, client: httpx.AsyncClient, key: str, prompt: str) -> None:
        """One request under one key, sent until it is answered."""
        body: dict[str, object] = {"model": self.spec.name, "messages": [{"role": "user", "content": prompt}]}
        if self.modalities is not None:
            body["modalities"] = self.modalities
        until = time.monotonic() + self.within
        while time.monotonic() < until:
            try:
                answer = await client.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == 200:
                rid = answer.headers["x-request-id"]
                self.prompts[rid] = prompt
                self.answers[rid] = answer.json()["choices"][0]["message"]["content"]
                return
            assert answer is None or answer.status_code == 503, answer.text
            self.retries += 1
            await asyncio.sleep(_PAUSE)
        raise AssertionError(f"{key} was not answered within {self.within:g} s")

    # Over the raw subject

    async def _publish(self) -> None:
        while not self._finishing.is_set():
            self._count += 1
            await self._offer(f"raw-{self._count}", self.prompt(self._count))
            await asyncio.sleep(self.raw_pause)

    async def _offer(self, rid: str, prompt: str) -> None:
        """One request under one id, published until it is acknowledged."""
        data = msgspec.json.encode(Request(prompt=prompt, modalities=self.modalities))
        until = time.monotonic() + self.within
        while time.monotonic() < until:
            try:
                await self.connection.js_publish(subjects.request(self.spec.name, rid), data)
            except BrokerUnavailable:
                self.retries += 1
                continue
            self.prompts[rid] = prompt
            return
        raise AssertionError(f"{rid} was not acknowledged within {self.within:g} s")

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        if value is None or key.startswith("dead."):
            return
        record: Record = codec.decode(value, Record)
        if record.state.terminal or key in self._ends:
            self._ends.setdefault(key, []).append(revision)


async def _known(producer: Producer, pipeline: str, rid: str) -> bool:
    try:
        await producer.result(pipeline, rid)
    except UnknownRequest:
        return False
    return True

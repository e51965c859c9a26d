"""Memory and logs stay bounded in bytes and lines when anybody may send anything."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
from msgspec.structs import replace

from omnibus.broker.clock import ServerClock
from omnibus.client.channel import _EARLY_BYTES, _MOST_BYTES, _MOST_MESSAGES, Mailbox
from omnibus.client.media_chunk import MediaChunk
from omnibus.errors import InvalidRequest
from omnibus.observability import rate_limit
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import configure_logging, get_logger
from omnibus.observability.metrics import Metrics
from omnibus.observability.rate_limit import RateLimit
from omnibus.registry.death import claim_book
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.requests.admission import new_record
from omnibus.requests.record import ENDED_TTL, OPEN_TTL, Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec
from omnibus.wire.control import Claim
from omnibus.wire.out import EndNotice
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request
from omnibus.workers.task_telemetry import TaskTelemetry
from tests.support.flow import line

pytestmark = pytest.mark.unit
NOTICE = EndNotice(rid="a", state="done")


@pytest.mark.parametrize(("size", "kept"), [(1, _MOST_MESSAGES), (_MOST_BYTES // 4, 4), (_MOST_BYTES + 1, 0)])
async def test_mailbox_drops_messages_and_asks_for_the_record_when_it_is_full(size: int, kept: int) -> None:
    box = Mailbox()
    for _ in range(_MOST_MESSAGES + 10):
        box.put(NOTICE, size)
    assert await box.take() == [*[NOTICE] * kept, None]
    box.put(NOTICE, min(size, _MOST_BYTES))
    assert await box.take() == [NOTICE]


async def test_mailbox_keeps_the_one_chunk_of_a_sound_when_it_is_full() -> None:
    box, chunk = Mailbox(), MediaChunk(1, 0, np.ones(10, np.float32), 24_000)
    for _ in range(_MOST_MESSAGES):
        box.put(NOTICE, 1)
    box.put(chunk)  # dropped, its reader would wait for ever for it to be taken
    assert chunk in await box.take()


async def test_mailbox_holds_little_when_nobody_follows_yet() -> None:
    box = Mailbox(_EARLY_BYTES)
    for _ in range(10):
        box.put(NOTICE, _EARLY_BYTES // 2)
    assert await box.take() == [NOTICE, NOTICE, None]


async def test_claims_announced_longest_ago_give_way_when_their_bytes_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claim_book, "MOST_BYTES", 10_000)
    book = ClaimBook(SimpleNamespace(), "p")  # type: ignore[arg-type]

    async def announce(replica: str, number: int = 1) -> None:
        held = ((f"rid-of-{replica}", f"$JS.ACK.s.c.1.{number}.3.4.5"),)
        claim = Claim(stage_id=0, replica=replica, instance="i", number=number, held=held)
        book._on_message(SimpleNamespace(data=codec.encode(claim)))  # type: ignore[arg-type]

    def known(replica: str) -> bool:
        return bool(book.held(ReplicaRecord(stage_id=0, replica=replica, instance="i")))

    await announce("r0")
    for number in range(1000):
        await announce(f"made-up-{number}")
        await announce("r1", number + 1)
    assert (known("r0"), known("r1"), known("made-up-999")) == (False, True, True)
    assert sum(one.nbytes for one in book._announced.values()) == book._bytes <= 10_000
    for replica in [replica for _, replica in book._announced]:
        book.forget(ReplicaRecord(stage_id=0, replica=replica, instance="i"))
    assert book._bytes == 0


def test_warnings_of_one_event_are_few_and_counted_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(monotonic=lambda: now))
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    log = get_logger("omnibus.test")
    for _ in range(1000):
        log.warning(LogEvent.REQUEST_REFUSED)
        log.info(LogEvent.REPLICA_UP)
    log.error(LogEvent.EVENT_POISONOUS)
    now += RateLimit.SECONDS
    log.warning(LogEvent.REQUEST_REFUSED)
    lines: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("request.refused") == RateLimit.LINES + 1
    assert (events.count("replica.up"), events.count("event.poisonous")) == (1000, 1)
    assert lines[-1]["suppressed"] == 1000 - RateLimit.LINES
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("state", "now", "seconds"),
    [
        (RequestState.OPEN, 90.0, 10.0 + OPEN_TTL),
        (RequestState.OPEN, 500.0, OPEN_TTL),
        (RequestState.DONE, 90.0, ENDED_TTL),
        (RequestState.CANCELLED, 100.0 - 2 * ENDED_TTL, 2 * ENDED_TTL),
    ],
)
def test_record_is_kept_beyond_its_deadline_while_it_is_open(state: RequestState, now: float, seconds: float) -> None:
    request, payload = Request(prompt="x", deadline=10.0), Payload.inline(b"", TEXT)
    record: Record = new_record(line("p"), request, rid="a", payload=payload, nonce="n", now=90.0, front=None)
    assert replace(record, state=state).lifetime(now) == seconds


async def _ask() -> float:
    raise AssertionError("nobody asks for the time")


def test_lines_about_malformed_tasks_are_few_and_hide_no_other_failure_when_there_are_many() -> None:
    stream, metrics = io.StringIO(), Metrics()
    configure_logging("info", "json", stream=stream)
    telemetry = TaskTelemetry(metrics, "p", 0, ServerClock(_ask))
    for number in range(300):
        telemetry.malformed(f"omni.p.task.0.interactive.{number}", InvalidRequest("malformed"))
    get_logger("omnibus.test").warning(LogEvent.TASK_FAILED)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["task.malformed"] * RateLimit.LINES + ["task.failed"]
    assert metrics.deliveries.labels("p", "0", "malformed")._value.get() == 300
    structlog.reset_defaults()

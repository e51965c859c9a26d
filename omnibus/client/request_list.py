"""The requests of a pipeline, found by what they are and where they are. For operators: every record is looked at."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from omnibus.broker.bucket import MOST_AT_ONCE, Bucket
from omnibus.broker.connection import Connection
from omnibus.errors import InvalidRequest
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """The requests that are meant: those that fit all that is given."""

    states: Collection[RequestState] = ()
    stage_id: int | None = None
    """At which an open one waits or runs, or a failed one failed."""
    tenant: str | None = None
    older_than: float = 0.0
    """Seconds since it was accepted."""
    newer_than: float | None = None

    def takes(self, record: Record, at: Collection[int], now: float) -> bool:
        """Whether a request is meant that is at these stages now. Pure."""
        age = now - record.ticket.created
        stages = {*at, *([record.failure.stage_id] if record.failure is not None else [])}
        return (
            (not self.states or record.state in self.states)
            and (self.stage_id is None or self.stage_id in stages)
            and self.tenant in (None, record.tenant)
            and age >= self.older_than
            and (self.newer_than is None or age < self.newer_than)
        )


@dataclass(frozen=True, slots=True)
class ListedRequest:
    """A request and the stages that its tasks are at; none between two stages, and when it has ended."""

    record: Record
    at: tuple[int, ...]

    @property
    def created(self) -> float:
        return self.record.ticket.created

    def as_json(self, spec: PipelineSpec, now: float) -> dict[str, Any]:
        record, failure = self.record, self.record.failure
        return {
            "request_id": record.rid,
            "pipeline": spec.name,
            "state": str(record.state),
            "tenant": record.tenant,
            "lane": record.ticket.lane,
            "created": round(self.created, 3),
            "age": round(max(now - self.created, 0.0), 3),
            "at": [spec.stage_name(stage) for stage in self.at],
            "run": record.ticket.run,
            "dead": record.dead,
            "code": failure.code if failure is not None else None,
            "message": failure.message if failure is not None else None,
            "failed_at": None if failure is None or failure.stage_id is None else spec.stage_name(failure.stage_id),
        }


async def list_requests(
    connection: Connection, spec: PipelineSpec, wanted: RequestFilter, *, limit: int
) -> tuple[list[ListedRequest], int]:
    """The newest `limit` requests that are meant, the newest first, and how many there are in all; raises BrokerUnavailable.

    Records that no present code can read are left out. A chunk of records is in memory at a time, beside those returned.
    """
    bucket = Bucket(connection, stores.requests_bucket(spec.name))
    rids = [key for key in await bucket.keys() if not key.startswith(stores.DEAD_LETTERS)]
    tasks = await connection.stored_subjects(stores.work_stream(spec.name), subjects.all_tasks_filter(spec.name))
    at: dict[str, list[int]] = {}
    for subject in tasks:
        parts = subjects.parse_task(subject)
        at.setdefault(parts.rid, []).append(parts.stage_id)
    kept: list[ListedRequest] = []
    count, now = 0, connection.clock.now()
    for first in range(0, len(rids), MOST_AT_ONCE):
        values = await bucket.get_all(rids[first : first + MOST_AT_ONCE])
        meant = [
            ListedRequest(record, tuple(sorted(at.get(record.rid, ()))))
            for record in _read(values.values())
            if wanted.takes(record, at.get(record.rid, ()), now)
        ]
        count += len(meant)
        kept = heapq.nlargest(limit, [*kept, *meant], key=attrgetter("created"))
    return kept, count


def _read(values: Collection[bytes]) -> Iterator[Record]:
    for value in values:
        try:
            yield codec.decode(value, Record)
        except InvalidRequest:
            continue

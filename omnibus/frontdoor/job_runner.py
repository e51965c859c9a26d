"""The runner of jobs of one kind: takes each from the queue of all front doors, and follows its request to its end.

Every front door has one. The queue gives a job to another as soon as its runner is silent for a lease; two that follow the
same job do no harm, as each change of it is a compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, Self, TypeVar, cast

import msgspec

from omnibus.broker.delivery import Delivery
from omnibus.broker.delivery_loop import LEFT_TO_OTHERS, serve_always
from omnibus.broker.puller import Puller
from omnibus.client.producer import Submission
from omnibus.errors import AttemptSuperseded, BrokerError, OmnibusError, UnknownRequest, Unreadable
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault
from omnibus.frontdoor.job_records import UNRECORDED, JobRecord, QueuedJob
from omnibus.frontdoor.job_submission import ADMISSION
from omnibus.frontdoor.tenant_places import TenantPlaces
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.webhooks.webhook_event import EventType
from omnibus.wire.request import Request

MOST_FOLLOWED = 256
"""Jobs of a kind that one front door follows at the same time; others wait in the queue, and run all the same."""
MOST_OF_ONE = MOST_FOLLOWED // 2
"""Those of them that one tenant has, so that others have their turn."""
_FULL_LOOK = 5.0
"""Seconds after which a job is looked at once more whose tenant has all its places."""
_AGAIN = 1.0
"""Seconds after which a job is looked at once more that cannot be followed yet."""
_SOON = 0.2
"""The same for a job without a record, at first; the delay doubles."""
_log = get_logger(__name__)
R = TypeVar("R", bound=JobRecord)


@dataclass(frozen=True, slots=True)
class JobQueue:
    """The queue of a kind of jobs."""

    stream: str
    consumer: str
    lease: float
    label: str


class JobStore(Protocol[R]):
    """The jobs of a kind."""

    def now(self) -> float:
        """The time by the server's clock."""
        ...

    async def known(self, owner: str | None, job_id: str) -> R | None:
        """A tenant's job, None when there is none."""

    async def request(self, record: R) -> Request:
        """The request that a job is; raises PayloadLost."""
        ...


class JobRunner(Generic[R]):
    """Sees jobs to their end, in an `async with`; what it then has in hand goes to others. A subclass follows and fails them."""

    given_up: LogEvent
    """The event of a job that cannot be run."""

    def __init__(self, context: FrontDoorContext, store: JobStore[R], queue: JobQueue) -> None:
        self.context, self._jobs, self._queue = context, store, queue
        self._producer = context.producer
        self._places = TenantPlaces(MOST_OF_ONE)
        self._following: set[asyncio.Task[object]] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        queue, connection = self._queue, self._producer.connection
        puller = partial(
            Puller, connection, queue.stream, [queue.consumer], lease=queue.lease, label=queue.label
        )  # fmt: skip
        serving = serve_always(connection, puller, self, concurrency=MOST_FOLLOWED, where=queue.label)
        self._task = asyncio.create_task(serving, name=queue.label)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._following:  # the loop would wait for them
            task.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def follow(self, record: R, submission: Submission) -> None:
        """See a job to its end by its request; raises AttemptSuperseded when another runner has it."""
        raise NotImplementedError

    async def fail(self, record: R, error: OmnibusError) -> None:
        """End a job that nobody can run."""
        raise NotImplementedError

    async def handle(self, delivery: Delivery) -> bool:
        """See one job to its end; False when it was put back, to be looked at once more. Raises Unreadable for none."""
        with self._places.taken(_queued(delivery).owner) as has_place:
            if has_place:
                return await self._see_to(delivery)
        await delivery.nak(_FULL_LOOK)
        return False

    async def _see_to(self, delivery: Delivery) -> bool:
        record = await self._record(delivery)
        if record is None:  # it was deleted, or is on its way
            age = self._jobs.now() - delivery.stored_at
            if age < UNRECORDED:
                await delivery.nak(max(_SOON, age))
            return age >= UNRECORDED
        if record.ended is not None:
            await self._announce(record)
            return True
        async with self._held(delivery):
            submission = await self._submission(record)
            if submission is not None:
                try:
                    await self.follow(record, submission)
                except AttemptSuperseded:  # the message is the other's
                    return False
                await self._announce(await self._record(delivery))
                return True
        await delivery.nak(_AGAIN)
        return False

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:  # noqa: ARG002 it fails either way
        """End a job that cannot be run; of one that cannot be read, only the log tells."""
        _log.error(self.given_up, subject=delivery.subject, error=str(error))
        with suppress(Unreadable):
            record = await self._record(delivery)
            if record is not None:
                await self.fail(record, error if isinstance(error, OmnibusError) else ServerFault())
                await self._announce(await self._record(delivery))

    def end_of(self, record: R) -> EventType:
        """The event of a job that has ended."""
        raise NotImplementedError

    async def _announce(self, record: R | None) -> None:
        """Queue the webhooks of a job that has ended; idempotent."""
        if record is not None and record.ended is not None:
            await self.context.webhooks.notify(record.owner, self.end_of(record), record.id)

    async def _record(self, delivery: Delivery) -> R | None:
        queued = _queued(delivery)
        try:
            return await self._jobs.known(queued.owner, queued.id)
        except msgspec.DecodeError as error:
            raise Unreadable(f"the record of {queued.id} cannot be read: {error}") from error

    def rid_of(self, record: R) -> str:
        """The id of a job's request."""
        return record.id

    async def _submission(self, record: R) -> Submission | None:
        """The request of a job, submitted again where nothing knows it any more; None while that cannot be known or done."""
        try:
            return await self._producer.attach(record.pipeline, self.rid_of(record))
        except UnknownRequest:
            if self._jobs.now() < record.created + ADMISSION:
                return None
        served = await self.context.models.find(record.pipeline)
        try:
            return await self._producer.submit(served.spec, await self._jobs.request(record), rid=self.rid_of(record))
        except OmnibusError as error:
            if error.retryable and not isinstance(error, BrokerError):  # there is no room for it now
                return None
            raise

    @asynccontextmanager
    async def _held(self, delivery: Delivery) -> AsyncIterator[None]:
        """Keep a delivery from being given to others; they get it at once where this runner is stopped meanwhile."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._queue.lease / 3)
                delivery.renew()

        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._following.add(task)
        renewing = asyncio.create_task(renew(), name=f"renew {delivery.subject}")
        try:
            yield
        except asyncio.CancelledError:
            await delivery.nak(LEFT_TO_OTHERS)
            raise
        finally:
            renewing.cancel()
            self._following.discard(task)


def _queued(delivery: Delivery) -> QueuedJob:
    try:
        return msgspec.msgpack.decode(delivery.data, type=QueuedJob)
    except msgspec.DecodeError as error:
        raise Unreadable(f"the job on {delivery.subject!r} cannot be read: {error}") from error

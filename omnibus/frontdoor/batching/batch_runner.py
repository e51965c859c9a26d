"""The runner of batches in a front door: it takes them from the queue of all front doors, and drives them side by side."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Self

import msgspec
from fastapi import FastAPI

from omnibus.batches.batch_record import BatchRecord, BatchStatus, LineFault, UnknownBatch
from omnibus.batches.batch_store import BatchStore
from omnibus.broker.connection import OUT_OF_RESOURCES
from omnibus.broker.delivery import Delivery
from omnibus.broker.delivery_loop import LEFT_TO_OTHERS, serve_always
from omnibus.broker.layout import BATCH_LEASE
from omnibus.broker.puller import Puller
from omnibus.errors import AttemptSuperseded, BrokerRefused, BrokerUnavailable, OmnibusError, Unreadable
from omnibus.frontdoor.batching.batch_drive import BatchDrive, NothingRuns, announce_end, waits_for_replicas
from omnibus.frontdoor.batching.line_window import LineWindows
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.tenant_places import TenantPlaces
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire import stores

MOST_BATCHES = 32
"""Batches that one front door drives at the same time; the bound on its memory."""
MOST_OF_ONE = MOST_BATCHES // 2
"""Those of them that one tenant has, however many it has begun at the same moment."""
_IDLE_LOOK = 5.0
"""Seconds after which a batch whose model lacks replicas is looked at once more; a cancellation waits as long."""
_LONGEST_WAIT = 30.0
"""Seconds after which a batch is taken again, at most, while the broker has no room for its answers."""
_log = get_logger(__name__)


class BatchRunner:
    """Drives batches, in an `async with`. At the end it leaves what it has in hand to others, at once."""

    def __init__(self, app: FastAPI) -> None:
        context: FrontDoorContext = app.state.context
        connection = context.producer.connection
        self._app, self._connection, self._windows = app, connection, LineWindows(context)
        self._store = BatchStore(connection)
        self._places, self._stopping = TenantPlaces(MOST_OF_ONE), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        puller = partial(
            Puller, self._connection, stores.BATCHES_STREAM, [stores.BATCHES_CONSUMER], lease=BATCH_LEASE, label="batches"
        )  # fmt: skip
        serving = serve_always(self._connection, puller, self, concurrency=MOST_BATCHES, where="batch")
        self._task = asyncio.create_task(serving, name="batches")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def handle(self, delivery: Delivery) -> bool:
        """Drive one batch to its end; False when it is left to others. Raises BrokerError, and Unreadable for no batch."""
        try:
            record = self._store.decode(delivery.data)
        except msgspec.DecodeError as error:
            raise Unreadable(f"the batch on {delivery.subject!r} cannot be read: {error}") from error
        with self._places.taken(record.tenant) as has_place:
            if has_place:
                return await self._driven(delivery, record)
        await delivery.nak(_IDLE_LOOK)
        return False

    async def _driven(self, delivery: Delivery, record: BatchRecord) -> bool:
        """Drive a batch that has a place; as `handle`."""
        driving = asyncio.create_task(self._drive(delivery, record), name=record.id)
        stopping = asyncio.create_task(self._stopping.wait(), name=f"{record.id} stopping")
        try:
            await asyncio.wait({driving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            was_driven = driving.done()
            driving.cancel()
            await asyncio.wait({driving, stopping})
        if not was_driven:
            await delivery.nak(LEFT_TO_OTHERS)
            return False
        try:
            driving.result()
        except AttemptSuperseded:  # the message is the other's
            return False
        except UnknownBatch:  # its record has expired
            return True
        except NothingRuns:
            await delivery.nak(_IDLE_LOOK)
            return False
        except BrokerRefused as error:
            if error.err_code not in OUT_OF_RESOURCES:
                raise
            await delivery.nak(min(2.0 ** min(delivery.num_delivered, 10), _LONGEST_WAIT))
            return False
        return True

    async def _drive(self, delivery: Delivery, record: BatchRecord, fault: LineFault | None = None) -> None:
        # Invariant: the record counts. The message may be of another body under the same idempotency key, which came too late.
        record = await self._store.restore(record)
        if fault is None and await self._cannot_run(record):
            raise NothingRuns
        await BatchDrive(self._app, self._windows, self._store, record, delivery.renew).run(fault)

    async def _cannot_run(self, record: BatchRecord) -> bool:
        """Whether a batch that is in progress would only take the place of others."""
        may_wait = record.status is BatchStatus.IN_PROGRESS and record.expires > self._store.clock.now()
        return may_wait and await waits_for_replicas(self._windows, record)

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:  # noqa: ARG002 it fails either way
        """End a batch that cannot be driven as failed, if possible with its files; one that cannot be read has no record."""
        fault = LineFault(code=error.code if isinstance(error, OmnibusError) else OmnibusError.code, message=str(error))

        def failed(record: BatchRecord) -> BatchRecord:
            return (
                record if record.ended else record.moved(BatchStatus.FAILED, self._store.clock.now(), faults=(fault,))
            )

        _log.error(LogEvent.BATCH_ENDED, subject=delivery.subject, error=str(error))
        with suppress(msgspec.DecodeError, UnknownBatch, AttemptSuperseded):
            record = self._store.decode(delivery.data)
            try:
                await self._drive(delivery, record, fault)
            except (UnknownBatch, AttemptSuperseded, BrokerUnavailable):
                raise
            except Exception:  # noqa: BLE001 it ends all the same, without files
                _log.exception(LogEvent.TASK_CRASHED, subject=delivery.subject)
                ended = await self._store.change(record.tenant, record.id, failed)
                await announce_end(self._app.state.context, ended)

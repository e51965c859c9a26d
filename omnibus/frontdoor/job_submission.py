"""The submission of a job's request, first by the call that stored the job; others under its idempotency key wait for that.

A job whose request is refused is removed, so that a repeat of the call tries anew: nobody else is answered with it before. A
request that is known is submitted again by the others: its first submission may have ended half done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from fastapi import Request as HttpRequest

from omnibus.errors import BrokerError, OmnibusError, UnknownRequest
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.idempotency_keys import key_conflict
from omnibus.frontdoor.job_records import JobRecord
from omnibus.frontdoor.submitting import Prepared, send

ADMISSION = 5.0
"""Seconds after a job's creation in which nobody but its creator submits it."""
_MARGIN = 2.0
"""Seconds before their end from which its creator leaves the job to others: for its removal, and the difference of two clocks."""
_LOOK = 0.05
"""Seconds between looks at a job that another call submits; nobody tells when it has."""


class KeyedJob(JobRecord, Protocol):
    """A job that may have been asked for under an idempotency key."""

    @property
    def fingerprint(self) -> str:
        """Digest of its request: another request under the same key is a conflict."""


R = TypeVar("R", bound=KeyedJob)


class KeyedJobs(Protocol[R]):
    """The jobs of a kind."""

    def now(self) -> float: ...
    async def known(self, owner: str | None, job_id: str) -> R | None: ...
    async def remove(self, record: R) -> None: ...


async def submit_job(
    context: FrontDoorContext, http: HttpRequest, jobs: KeyedJobs[R], begin: Callable[[], Awaitable[tuple[R, bool]]],
    prepared: Callable[[R], Prepared], *, fingerprint: str, what: str,
) -> R:  # fmt: skip
    """A job whose request was submitted, by this call or by an earlier one under the same key.

    `begin` stores it, and tells whether this call did; `prepared` makes the request of a stored one. Raises RequestConflict
    where the key has another one, `what` naming its kind, and as `send`: then the job is gone, unless it was there before, may
    have been accepted, or is as old as others may submit it.
    """
    while True:
        record, is_new = await begin()
        if record.fingerprint != fingerprint:
            raise key_conflict(what)
        if record.ended is not None:
            return record
        own = prepared(record)
        if not is_new and not await _stays(context, jobs, record, own):
            continue  # its creator was refused: this call begins anew
        try:
            await send(context, http, own)
        except OmnibusError as error:
            if is_new and _is_refused(error, own, jobs.now() - record.created):
                with suppress(BrokerError):
                    await jobs.remove(record)
            raise
        return record


async def _stays(context: FrontDoorContext, jobs: KeyedJobs[R], record: R, prepared: Prepared) -> bool:
    """Whether a job is still there once its request is known, or its creator has had its time."""
    while await jobs.known(record.owner, record.id) is not None:
        with suppress(UnknownRequest):
            await context.producer.attach(record.pipeline, prepared.rid)
            return True
        if jobs.now() > record.created + ADMISSION:
            return True
        await asyncio.sleep(_LOOK)
    return False


def _is_refused(error: OmnibusError, prepared: Prepared, age: float) -> bool:
    """Whether the request of a job that is so many seconds old will never be accepted."""
    return not prepared.keyed or (not isinstance(error, BrokerError) and age < ADMISSION - _MARGIN)

"""The claims of every replica of a pipeline, as announced: a failure detector requeues those of a dead one."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.broker.delivery import is_ack_subject
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskClaims, Claim

Held = tuple[tuple[str, str], ...]
"""(request id, ack subject) of deliveries."""


class ClaimBook:
    """Listens to the claims of a pipeline, in an `async with`; asks for all of them at the start.

    Its memory is bounded by the replicas that there are and the tasks that each has in hand.
    """

    def __init__(self, conn: Connection, pipeline: str) -> None:
        self._conn, self._pipeline = conn, pipeline
        self._announced: dict[tuple[int, str], Claim] = {}
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._conn.subscribe(subjects.claims(self._pipeline), self._on_message)
        await self._conn.publish(subjects.ctl_all(self._pipeline), codec.encode(AskClaims()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def held(self, record: ReplicaRecord) -> Held:
        """Return the last claims of this life of a replica: of its last heartbeat, or of an announcement after it.

        Invariant: never the claims of a former life under the same id. Others have had those tasks since, and requeueing them
        once more would take them from the replicas that run them now.
        """
        announced = self._announced.get(record.key)
        is_later = (
            announced is not None and announced.instance == record.instance and announced.number > record.announced
        )
        claims = announced.held if announced is not None and is_later else record.claims
        return tuple(claim for claim in claims if is_ack_subject(claim[1]))

    def forget(self, record: ReplicaRecord) -> None:
        """The replica is gone, and its id may be another's soon."""
        self._announced.pop(record.key, None)

    async def _on_message(self, message: ReceivedMessage) -> None:
        claim: Claim = codec.decode(message.data, Claim)
        self._announced[claim.stage_id, claim.replica] = claim

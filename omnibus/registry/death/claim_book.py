"""The claims of every replica of a pipeline, as announced: a failure detector requeues those of a dead one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Self

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.broker.delivery import claimed, consumer_of, is_ack_subject
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskClaims, Claim

MOST_BYTES = 16 << 20
"""Bytes of the announcements that one book keeps."""
Held = tuple[tuple[str, str], ...]
"""(request id, ack subject) of deliveries."""


class ClaimBook:
    """Listens to the claims of a pipeline, in an `async with`; asks for all of them at the start.

    Bounded in bytes, for anybody who may announce claims can announce any: beyond MOST_BYTES those announced longest ago give
    way. Of a replica without any, its last heartbeat tells.

    Invariant: no task is lost by claims that are out of date, because announcements gave way or never arrived. One that is
    missing here is delivered again when its lease ends. One that its replica has not any more is gone, which makes its
    requeueing void, or another replica has it at a later delivery, which `releasable` leaves out; where that is not known here,
    the task runs twice, and the first result counts.
    """

    def __init__(self, conn: Connection, pipeline: str) -> None:
        self._conn, self._pipeline = conn, pipeline
        self._announced: OrderedDict[tuple[int, str], tuple[Claim, int]] = OrderedDict()  # with its bytes
        self._bytes = 0
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._conn.subscribe(subjects.claims(self._pipeline), self._on_message)
        await self._conn.publish(subjects.ask_all(self._pipeline), codec.encode(AskClaims()))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def held(self, record: ReplicaRecord) -> Held:
        """Return the last claims of this life of a replica: of its last heartbeat, or of an announcement after it.

        Invariant: never the claims of a former life under the same id. Others have had those tasks since.
        """
        announced, _ = self._announced.get(record.key, (None, 0))
        is_later = (
            announced is not None and announced.instance == record.instance and announced.number > record.announced
        )
        claims = announced.held if announced is not None and is_later else record.claims
        return tuple(claim for claim in claims if is_ack_subject(claim[1]))

    def releasable(self, record: ReplicaRecord) -> Held:
        """Those of `held` whose task no other replica has had since, as far as is known.

        Invariant: a task whose lease has ended belongs to another replica. To requeue it once more would take it from that one.
        """
        held = self.held(record)
        rids = {rid for rid, _ in held}
        others = (one for key, (one, _) in self._announced.items() if key[0] == record.stage_id and key != record.key)
        later = [ack for one in others for rid, ack in one.held if rid in rids and is_ack_subject(ack)]
        return tuple(claim for claim in held if not any(_is_later(other, claim[1]) for other in later))

    def forget(self, record: ReplicaRecord) -> None:
        """The replica is gone, and its id may be another's soon."""
        _, size = self._announced.pop(record.key, (None, 0))
        self._bytes -= size

    def _on_message(self, message: ReceivedMessage) -> None:
        claim: Claim = codec.decode(message.data, Claim)
        key, size = (claim.stage_id, claim.replica), len(message.data)
        _, former = self._announced.pop(key, (None, 0))
        self._announced[key] = claim, size
        self._bytes += size - former
        while self._bytes > MOST_BYTES:
            _, (_, dropped) = self._announced.popitem(last=False)
            self._bytes -= dropped


def _is_later(other: str, mine: str) -> bool:
    """Whether an ack subject answers a later delivery of the same message."""
    (sequence, delivery), (my_sequence, my_delivery) = claimed(other), claimed(mine)
    return consumer_of(other) == consumer_of(mine) and sequence == my_sequence and delivery > my_delivery

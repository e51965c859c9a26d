"""The claims of every replica of a pipeline, as announced: a failure detector requeues those of a dead one."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Self

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.broker.delivery import claimed, consumer_of, is_ack_subject
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement, AskClaims, Claim, ClaimChange
from omnibus.wire.names import is_name

MOST_BYTES = 16 << 20
"""Bytes of the announcements that one book keeps."""
_FIELDS = 64  # bytes of the rest of an entry
ASK_AGAIN = 1.0
"""Seconds after which a replica is asked once more for the whole list, while that has not come."""
Held = tuple[tuple[str, str], ...]
"""(request id, ack subject) of deliveries."""


@dataclass(slots=True)
class _Announced:
    """The announcements of one life of a replica, put together."""

    replica: str
    instance: str
    number: int = 0
    """That of the last one."""
    held: dict[str, str] = field(default_factory=dict)
    """Request ids by ack subject; after a gap, of what was taken since."""
    released: set[str] = field(default_factory=set)
    """Ack subjects of what was released since a gap."""
    nbytes: int = _FIELDS
    is_complete: bool = True
    """Whether none was missed since the last whole list, or the first announcement."""
    asked_at: float = -ASK_AGAIN

    def replace_by(self, claim: Claim) -> None:
        self.number, self.is_complete = claim.number, True
        self.held = {ack_subject: rid for rid, ack_subject in claim.held}
        self.released.clear()
        self._weigh()

    def apply(self, change: ClaimChange) -> None:
        if change.number <= self.number:
            return  # it came twice, or a list that was made after it came before it
        if change.number != self.number + 1:
            # What was known may have been released: to requeue it would take it from the replica that runs it now.
            self.is_complete = False
            self.held.clear()
            self.released.clear()
        self.number = change.number
        self.held.update((ack_subject, rid) for rid, ack_subject in change.taken)
        for ack_subject in change.released:
            self.held.pop(ack_subject, None)
        if not self.is_complete:
            self.released.update(change.released)
        self._weigh()

    def _weigh(self) -> None:
        texts = (self.replica, self.instance, *self.held, *self.held.values(), *self.released)
        self.nbytes = _FIELDS + sum(map(len, texts))


class ClaimBook:
    """Listens to the claims of a pipeline, in an `async with`; asks for all of them at the start.

    Replicas announce changes, by number: after one that is missing the whole list is asked for, and until it comes, the last
    heartbeat and the changes since count. Bounded in bytes, for anybody who may announce claims can announce any: beyond
    MOST_BYTES those announced longest ago give way. Of a replica without any, its last heartbeat tells.

    Invariant: no task is lost by claims that are out of date, because announcements gave way or never arrived. One that is
    missing here is delivered again when its lease ends. One that its replica has not any more is gone, which makes its
    requeueing void, or another replica has it at a later delivery, which `releasable` leaves out; where that is not known here,
    the task runs twice, and the first result counts.
    """

    def __init__(self, conn: Connection, pipeline: str) -> None:
        self._conn, self._pipeline = conn, pipeline
        self._announced: OrderedDict[tuple[int, str], _Announced] = OrderedDict()
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
        """Return the last claims of this life of a replica: of its last heartbeat, or of announcements after it.

        Invariant: never the claims of a former life under the same id. Others have had those tasks since.
        """
        announced = self._announced.get(record.key)
        claims = record.claims
        if announced is not None and announced.instance == record.instance and announced.number > record.announced:
            before = () if announced.is_complete else (one for one in claims if one[1] not in announced.released)
            since = ((rid, ack_subject) for ack_subject, rid in announced.held.items())
            claims = tuple(dict.fromkeys((*before, *since)))
        return tuple(claim for claim in claims if is_ack_subject(claim[1]))

    def releasable(self, record: ReplicaRecord) -> Held:
        """Those of `held` whose task no other replica has had since, as far as is known.

        Invariant: a task whose lease has ended belongs to another replica. To requeue it once more would take it from that one.
        """
        held = self.held(record)
        rids = {rid for rid, _ in held}
        others = (one for key, one in self._announced.items() if key[0] == record.stage_id and key != record.key)
        later = [ack for one in others for ack, rid in one.held.items() if rid in rids and is_ack_subject(ack)]
        return tuple(claim for claim in held if not any(_is_later(other, claim[1]) for other in later))

    def forget(self, record: ReplicaRecord) -> None:
        """The replica is gone, and its id may be another's soon."""
        forgotten = self._announced.pop(record.key, None)
        self._bytes -= forgotten.nbytes if forgotten is not None else 0

    def _on_message(self, message: ReceivedMessage) -> None:
        announcement: Announcement = codec.decode(message.data, Announcement)
        key = announcement.stage_id, announcement.replica
        known = self._announced.pop(key, None)
        self._bytes -= known.nbytes if known is not None else 0
        if known is None or known.instance != announcement.instance:
            known = _Announced(announcement.replica, announcement.instance)
        if isinstance(announcement, Claim):
            known.replace_by(announcement)
        else:
            known.apply(announcement)
        self._announced[key] = known
        self._bytes += known.nbytes
        while self._bytes > MOST_BYTES:
            _, dropped = self._announced.popitem(last=False)
            self._bytes -= dropped.nbytes
        if not known.is_complete:
            self._ask(key, known)

    def _ask(self, key: tuple[int, str], known: _Announced) -> None:
        """Ask one replica for the whole list, as an announcement of it was missed."""
        now = time.monotonic()
        if now - known.asked_at >= ASK_AGAIN and is_name(key[1]):
            known.asked_at = now
            self._conn.send(subjects.ask(self._pipeline, *key), codec.encode(AskClaims()))


def _is_later(other: str, mine: str) -> bool:
    """Whether an ack subject answers a later delivery of the same message."""
    (sequence, delivery), (my_sequence, my_delivery) = claimed(other), claimed(mine)
    return consumer_of(other) == consumer_of(mine) and sequence == my_sequence and delivery > my_delivery

"""The claims of the dead: only what nobody has had since goes back to the queue."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement, AskClaims, Claim, ClaimChange, Control

pytestmark = pytest.mark.unit


def ack(sequence: int, delivery: int, consumer: str = "stage-0-interactive") -> str:
    return f"$JS.ACK.work.{consumer}.{delivery}.{sequence}.9.1700000000.0"


@pytest.mark.parametrize(
    ("theirs", "is_held"),
    [
        (("a", ack(5, 2)), False),
        (("a", ack(5, 1)), True),
        (("a", ack(6, 2)), True),
        (("a", ack(5, 2, "stage-0-batch")), True),
        (("a", "garbage"), True),
    ],
    ids=["a later delivery", "the same", "another message", "of another lane", "nonsense"],
)
@pytest.mark.parametrize("stage", [0, 1])
async def test_claim_is_not_released_when_another_replica_has_had_its_task_since(
    theirs: tuple[str, str], is_held: bool, stage: int
) -> None:
    """The dead one hung for longer than its lease, or its last announcements never arrived."""
    book = ClaimBook(SimpleNamespace(), "p")  # type: ignore[arg-type]
    claim = Claim(stage_id=stage, replica="lives", instance="other", number=1, held=(theirs,))
    book._on_message(SimpleNamespace(data=codec.encode(claim)))  # type: ignore[arg-type]
    dead = ReplicaRecord(stage_id=0, replica="dead", instance="i", claims=(("a", ack(5, 1)), ("b", ack(7, 1))))
    expected = dead.claims if is_held or stage == 1 else dead.claims[1:]
    assert (book.releasable(dead), book.held(dead)) == (expected, dead.claims)


class Line:
    """A book that hears one replica, and what it asks."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Control]] = []
        self.book = ClaimBook(SimpleNamespace(send=self._send), "p")  # type: ignore[arg-type]

    def hear(self, announcement: Announcement) -> None:
        self.book._on_message(SimpleNamespace(data=codec.encode(announcement)))  # type: ignore[arg-type]

    def change(self, number: int, *taken: str, released: tuple[int, ...] = ()) -> None:
        given = tuple((rid, ack(int(rid), 1)) for rid in taken)
        gone = tuple(ack(sequence, 1) for sequence in released)
        self.hear(ClaimChange(stage_id=0, replica="r0", instance="i", number=number, taken=given, released=gone))

    def held(self, *listed: str, announced: int = 0) -> list[str]:
        """Sorted ids, when the last heartbeat listed these after so many announcements."""
        claims = tuple((rid, ack(int(rid), 1)) for rid in listed)
        record = ReplicaRecord(stage_id=0, replica="r0", instance="i", announced=announced, claims=claims)
        return sorted(rid for rid, _ in self.book.held(record))

    def _send(self, subject: str, data: bytes) -> None:
        self.asked.append((subject, codec.decode(data, Control)))


def test_changes_add_up_when_none_is_missing() -> None:
    line = Line()
    line.change(1, "1", "2")
    line.change(2, "3", released=(1,))
    line.change(2, "9")  # it came twice
    assert line.held() == line.held("1", announced=1) == ["2", "3"]
    assert line.held("7", announced=2) == ["7"], "the heartbeat is as new"
    assert not line.asked


def test_whole_list_is_asked_for_once_when_a_change_is_missing() -> None:
    line = Line()
    line.change(1, "1")
    for number in (3, 4, 6):
        line.change(number, str(number))
    assert line.asked == [(subjects.ask("p", 0, "r0"), AskClaims())]
    line.hear(Claim(stage_id=0, replica="r0", instance="i", number=7, held=(("5", ack(5, 1)),)))
    line.change(8, "8")
    assert line.held() == ["5", "8"]
    assert len(line.asked) == 1


def test_last_heartbeat_and_later_changes_count_when_a_change_is_missing() -> None:
    """What was known before may have been released: requeueing would take it from the replica that runs it now."""
    line = Line()
    line.change(1, "1", "2")
    line.change(3, "4", "5")
    line.change(4, released=(3, 4))
    assert line.held("2", "3", announced=2) == ["2", "5"]
    assert line.held() == ["5"]


def test_first_change_is_not_taken_for_the_whole_when_those_before_it_were_not_heard() -> None:
    line = Line()
    line.change(5, "5")
    assert line.held("1", announced=4) == ["1", "5"]
    assert len(line.asked) == 1

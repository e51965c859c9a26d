"""The claims of the dead: only what nobody has had since goes back to the queue."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec
from omnibus.wire.control import Claim

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

"""The header by which a copy of a message refers to the one before."""

from __future__ import annotations

import pytest

from omnibus.broker.delivery import ATTEMPTS_HEADER, published_again

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("said", "counts"), [({}, None), ({ATTEMPTS_HEADER: "2"}, "2")])
def test_attempts_of_former_copies_count_on(said: dict[str, str], counts: str | None) -> None:
    headers = {"Nats-Msg-Id": "task.r.0.1/7", "Omni-Reply": "front", **said}
    msg_id, kept = published_again("omni.p.task.0.interactive.r", 9, headers, used=0)
    assert (msg_id, kept["Omni-Reply"]) == ("task.r.0.1/9", "front")
    assert kept.get(ATTEMPTS_HEADER) == counts


@pytest.mark.parametrize("nonsense", ["", "many", "-1", "1.5", "٣x", "9" * 5000])
def test_message_is_requeued_when_its_producer_wrote_nonsense_for_its_attempts(nonsense: str) -> None:
    _, kept = published_again("omni.p.request.r", 9, {ATTEMPTS_HEADER: nonsense}, used=1)
    assert kept[ATTEMPTS_HEADER] == "1"

"""Queues of outputs end with their engine, whatever other threads do meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from omnibus.client.async_omni import AsyncOmni
from omnibus.client.engine_thread import EngineThread
from omnibus.errors import EngineDead

pytestmark = pytest.mark.unit
ENDS = 200


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads take turns far more often than they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_threads")
def test_every_queue_is_closed_when_others_begin_and_end_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineThread, "__init__", lambda *_, **__: None)  # only the queues are needed
    omni = AsyncOmni("any", nats="nats://127.0.0.1:1")
    waiting = [omni._new_queue() for _ in range(500)]
    over = threading.Event()

    def ask_again_and_again() -> None:
        while not over.is_set():
            omni._end_queue(omni._new_queue())

    asking = [threading.Thread(target=ask_again_and_again) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(ENDS):
            omni._close_queues(EngineDead("over"))
    finally:
        over.set()
        for thread in asking:
            thread.join(20)
    for queue in waiting:
        with pytest.raises(EngineDead, match="over"):
            queue.take(0)
    assert len(omni._queues) == 1 + len(waiting), "an ended queue is forgotten"

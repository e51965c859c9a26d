"""The server's time from its answers, sharp ones and none."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from omnibus.broker import clock as module
from omnibus.broker.clock import ServerClock
from omnibus.errors import BrokerUnavailable
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit
HOUR = 3600.0


@dataclass
class Answer:
    data: bytes
    subject: str = ""
    reply: str = ""
    headers: None = None


class Server:
    """Says the time that its clock shows, after a while; nothing when that is None."""

    def __init__(self, ahead: float | None, slow: float = 0.0) -> None:
        self.ahead, self.slow, self.answered = ahead, slow, 0

    async def ask(self) -> Answer:
        if self.ahead is None:
            raise BrokerUnavailable("nobody answers")
        await asyncio.sleep(self.slow)
        self.answered += 1
        now = datetime.fromtimestamp(time.time() + self.ahead, UTC).isoformat()
        return Answer(b'{"server": {"name": "x", "time": "%s"}}' % now.encode())


def ahead(clock: ServerClock) -> float:
    return clock.now() - time.time()


async def test_hosts_time_counts_until_the_servers_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_EVERY", 0.01)
    server = Server(ahead=None)
    clock = ServerClock(server.ask)
    async with clock.kept():
        assert (clock.measured, ahead(clock)) == (False, pytest.approx(0.0, abs=0.1))
        server.ahead = HOUR
        await eventually(lambda: clock.measured, what="it asks again")
        assert ahead(clock) == pytest.approx(HOUR, abs=0.1)


async def test_clock_is_measured_again_when_the_connection_may_be_to_another_server() -> None:
    server = Server(ahead=5.0)
    clock = ServerClock(server.ask)
    async with clock.kept():
        server.ahead = -HOUR
        clock.hurry()
        await eventually(lambda: ahead(clock) < 0.0, what="the other server's time")
        assert ahead(clock) == pytest.approx(-HOUR, abs=0.1)


async def test_blurred_answer_replaces_no_sharper_one_that_agrees_with_it() -> None:
    """The server answers at the end of what the question takes: taken for its middle, the time is wrong by half of that."""
    server = Server(ahead=5.0)
    clock = ServerClock(server.ask)
    async with clock.kept():
        sharp, server.slow = clock._ahead, 0.02
        clock.hurry()
        await eventually(lambda: server.answered == 2, what="it has heard")
        assert clock._ahead == sharp


async def test_blurred_answer_counts_when_the_servers_clock_was_stepped() -> None:
    server = Server(ahead=5.0)
    clock = ServerClock(server.ask)
    async with clock.kept():
        server.ahead, server.slow = HOUR, 0.4
        clock.hurry()
        await eventually(lambda: ahead(clock) > HOUR / 2, what="the new time")
        assert ahead(clock) == pytest.approx(HOUR, abs=0.3)


async def test_moment_of_the_hosts_clock_is_converted_to_the_servers_time() -> None:
    clock = ServerClock(Server(ahead=HOUR).ask)
    async with clock.kept():
        assert clock.at(time.time() - 7.0) == pytest.approx(time.time() + HOUR - 7.0, abs=0.1)

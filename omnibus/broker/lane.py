"""The state of one consumer at its puller: how many messages the server may still send, and when its last sign came."""

from __future__ import annotations

import asyncio
import time

EXPIRES = 30.0
"""Seconds that a parked request lives, unless its puller says otherwise."""
HEARTBEAT = 2.5
"""Seconds of silence after which the server sends a sign of life to a parked request."""
ASK_TIMEOUT = 2.0
"""Seconds in which a request that does not wait must be answered."""

_SECOND = 10**9
_ASKING = b'{"batch": %d, "no_wait": true}'
FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Lane:
    """The requests of one consumer. Touches no connection: the puller sends what `ask` and `park` make."""

    def __init__(self, stream: str, consumer: str, index: int, *, expires: float = EXPIRES) -> None:
        self.consumer = consumer
        self.subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self.outstanding = 0
        """Messages that the server may still send."""
        self.available = True
        """Whether it may be asked now: after a failure it is left alone for a moment."""
        self.last_token, self.last_request = "", b""
        self._index, self._made = index, 0
        self._expires, self._parked = expires, _parked(expires)
        self._tokens: dict[str, tuple[int, float]] = {}  # of each request: batch, and when it is over at the latest
        self._asking: asyncio.Future[None] | None = None
        self._received_at = self._over_at = 0.0
        self._pause = FIRST_PAUSE

    def ask(self, batch: int) -> asyncio.Future[None]:
        """Make a request that does not wait; the future is done when it is answered in full."""
        self._make(batch, _ASKING % batch, ASK_TIMEOUT)
        self._asking = asyncio.get_running_loop().create_future()
        return self._asking

    def park(self, batch: int) -> None:
        """Make a request that waits for messages."""
        self._make(batch, self._parked % batch, self._expires)

    def knows(self, token: str) -> bool:
        """Whether the token is of a request that still counts."""
        return token in self._tokens

    def received_message(self) -> None:
        """The server gave a sign of life."""
        self._received_at = time.monotonic()

    def received(self) -> None:
        """A message came. Which of several requests it answers cannot be seen, and does not matter."""
        self._received_at = time.monotonic()
        self._pause = FIRST_PAUSE
        self._lower(1)

    def ended(self, token: str, pending: int | None) -> None:
        """The server ended a request with `pending` messages not sent; None: a request that did not wait, in full."""
        self._tokens.pop(token)
        self._pause = FIRST_PAUSE
        self._lower(pending if pending is not None else self.outstanding)

    def silent(self) -> bool:
        """Whether messages are awaited of a server that seems to have forgotten."""
        now = time.monotonic()
        return self.outstanding > 0 and (now - self._received_at > 2.5 * HEARTBEAT or now > self._over_at + HEARTBEAT)

    def lost(self) -> float:
        """Nothing counts as asked for any more; returns after how many seconds to make it available again.

        They are FIRST_PAUSE unless nothing has worked since the last time.
        """
        self.reset()
        self.available = False
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return pause

    def reset(self) -> None:
        """Nothing counts as asked for any more, and it may be asked at once."""
        self.available = True
        self._tokens.clear()
        self._lower(self.outstanding)

    def _make(self, batch: int, request: bytes, lifetime: float) -> None:
        now = time.monotonic()
        while self._tokens and next(iter(self._tokens.values()))[1] < now - HEARTBEAT:
            del self._tokens[next(iter(self._tokens))]  # answered in full: the server says nothing at its end
        self._made += 1
        self.last_token, self.last_request = f"{self._index}-{self._made}", request
        self._tokens[self.last_token] = (batch, now + lifetime)
        self._received_at, self._over_at = now, now + lifetime
        self.outstanding += batch

    def _lower(self, by: int) -> None:
        self.outstanding = max(0, self.outstanding - by)
        if self.outstanding:
            return
        self._tokens.clear()
        if self._asking is not None and not self._asking.done():
            self._asking.set_result(None)


def _parked(expires: float) -> bytes:
    """A request that waits so many seconds; signs of life come only where it lives long enough to need them."""
    heartbeat = b', "idle_heartbeat": %d' % int(HEARTBEAT * _SECOND) if expires >= 2 * HEARTBEAT else b""
    return b'{"batch": %%d, "expires": %d%s}' % (int(expires * _SECOND), heartbeat)

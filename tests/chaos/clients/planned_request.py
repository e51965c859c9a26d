"""Planned requests of clients, and the notes on what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.history import Accepted, Broken, Delta, Ended, History, Invoked, Left

PAUSE = 0.05
"""Seconds before an operation is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One request, whatever the door."""

    op: str
    prompt: str
    expects: str | None = None
    """The text that must come out; None: what the ledger says."""
    modalities: tuple[str, ...] | None = None
    sampling: dict[str, dict[str, Any]] = field(default_factory=dict)
    segments: tuple[str, ...] = ()
    """What follows the prompt, in an open input."""
    doomed: bool = False
    body: bytes | None = None
    """Published as it is, in place of a request."""
    pace: float = 0.0
    """Seconds between two reads of a client that reads slowly."""

    @property
    def is_polite(self) -> bool:
        """Whether its client sends no segment before the one before is answered."""
        return sum(map(ord, self.op)) % 2 == 0

    @property
    def is_spoken(self) -> bool:
        """Whether its text comes as a sound."""
        return self.modalities == ("audio",)

    @property
    def is_filmed(self) -> bool:
        """Whether its text comes as a film."""
        return self.modalities == ("video",)


RequestArguments = Callable[[str], Wish]
"""The wish of the operation of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many clients there are, a door."""

    http_stream: int = 4
    http: int = 4
    python: int = 4
    session: int = 0
    session_http: int = 0
    """Both hold sessions: their wishes have segments."""
    raw: int = 1
    raw_pause: float = 0.1
    """Seconds between two raw requests of one client."""


class Note:
    """One operation's lines in the history."""

    def __init__(self, history: History, wish: Wish, front_door: str, *, within: float) -> None:
        self._history, self.wish = history, wish
        self._until = time.monotonic() + within
        self.attempt = 0
        self.rid: str | None = None
        """Of the request that it became."""
        history.add(Invoked(op=wish.op, front_door=front_door, expects=wish.expects, doomed=wish.doomed))

    @property
    def patient(self) -> bool:
        """Whether the client tries again."""
        return time.monotonic() < self._until

    @property
    def seconds_left(self) -> float:
        return max(self._until - time.monotonic(), 0.1)

    def accepted(self, rid: str) -> None:
        self.rid = rid
        self._history.add(Accepted(op=self.wish.op, rid=rid))

    def delta(self, text: str) -> None:
        self._history.add(Delta(op=self.wish.op, attempt=self.attempt, text=text))

    def broken(self, why: object, *, begun: bool = False) -> None:
        self._history.add(Broken(op=self.wish.op, attempt=self.attempt, why=str(why)[:200], begun=begun))
        self.attempt += 1

    def ended(self, state: str, *, text: str | None = None, code: str = "") -> None:
        self._history.add(Ended(op=self.wish.op, attempt=self.attempt, state=state, text=text, code=code))

    def left(self, why: str) -> None:
        self._history.add(Left(op=self.wish.op, why=why))

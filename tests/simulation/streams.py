"""The broker's storage: streams of numbered messages with dedupe, compare-and-set, lifetimes and schedules."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

WRONG_LAST_SEQUENCE = 10071
FULL = 10077
IN_PROCESS = 10158
_REMEMBERED = 8
"""Removals of a stream that may be undone, the last ones."""


class Refusal(Exception):
    """An error answer of the JetStream API."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.code, self.err_code, self.description = code, err_code, description


@dataclass(slots=True)
class Stored:
    """A message in a stream."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    at: float


@lru_cache(maxsize=4096)
def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is meant by a pattern, with `*` for one token and `>` for all that follow."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


class Stream:
    """Messages in order. `one_a_subject` is what a key-value bucket has: a new message replaces that of its subject."""

    def __init__(self, name: str, *, one_a_subject: bool = False) -> None:
        self.name = name
        self.messages: dict[int, Stored] = {}
        self.most = math.inf
        """Messages at which it refuses more."""
        self.forgets = False
        """Whether it knows ids of what it still stores only."""
        self.last_seq = 0
        self.on_removed: Callable[[int], None] = lambda _seq: None
        self._one_a_subject = one_a_subject
        self._seen: dict[str, int] = {}
        self._removed: deque[Stored] = deque(maxlen=_REMEMBERED)
        self.undone: set[int] = set()
        """Sequences whose removal was undone."""

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str], now: float) -> tuple[int, bool]:
        """Sequence, and whether the message was known already; raises Refusal."""
        msg_id = headers.get("Nats-Msg-Id")
        if (
            msg_id is not None
            and msg_id in self._seen
            and not (self.forgets and self._seen[msg_id] not in self.messages)
        ):
            return self._seen[msg_id], True
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        if expected is not None and int(expected) != self.last_of(subject):
            raise Refusal(400, WRONG_LAST_SEQUENCE, "wrong last sequence")
        if len(self.messages) >= self.most:
            raise Refusal(503, FULL, "maximum messages exceeded")
        if self._one_a_subject or "Nats-Schedule" in headers or headers.get("Nats-Rollup") == "sub":
            self.purge(subject)
        self.last_seq += 1
        self.messages[self.last_seq] = Stored(self.last_seq, subject, data, headers, now)
        if msg_id is not None:
            self._seen[msg_id] = self.last_seq
        return self.last_seq, False

    def last_of(self, subject: str) -> int:
        """Sequence of the last message on a subject, 0 when there is none."""
        found = self.last(subject)
        return found.seq if found is not None else 0

    def last(self, pattern: str) -> Stored | None:
        return next((stored for stored in reversed(self.messages.values()) if matches(pattern, stored.subject)), None)

    def before(self, stored: Stored) -> Stored | None:
        """The message before one on the same subject."""
        found = (
            one for one in reversed(self.messages.values()) if one.seq < stored.seq and one.subject == stored.subject
        )
        return next(found, None)

    def after(self, seq: int, pattern: str) -> Iterator[Stored]:
        """Messages from a sequence on."""
        return (found for found in self.messages.values() if found.seq >= seq and matches(pattern, found.subject))

    def remove(self, seq: int) -> bool:
        gone = self.messages.pop(seq, None)
        if gone is None:
            return False
        self._removed.append(gone)
        self.on_removed(seq)
        return True

    def purge(self, pattern: str, *, before: int | None = None) -> int:
        """Remove what is on these subjects, and where asked older than a sequence."""
        meant = (stored for stored in self.messages.values() if matches(pattern, stored.subject))
        gone = [stored.seq for stored in meant if before is None or stored.seq < before]
        for seq in gone:
            self.remove(seq)
        return len(gone)

    def bring_back(self, chosen: Callable[[], bool]) -> list[Stored]:
        """Undo removals, as a killed server does that had them not in its files; consumers know them as done."""
        back = [stored for stored in self._removed if chosen()]
        self._removed.clear()
        self.undone.update(stored.seq for stored in back)
        self.messages = dict(sorted({**self.messages, **{stored.seq: stored for stored in back}}.items()))
        return back

    def forget_ids(self) -> None:
        """Forget message ids, as a lone killed server does: it knows only those of what it still stores."""
        self._seen = {msg_id: seq for msg_id, seq in self._seen.items() if seq in self.messages}

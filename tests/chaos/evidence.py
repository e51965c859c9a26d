"""The state of the system after a scenario: the ledger's record of every request, and orphans."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The ledger on one request."""

    state: str
    ends: int = 1
    """How often it was written in a terminal state."""
    text: str | None = None
    """Its text output."""
    code: str = ""
    """Code of its failure."""
    queued: bool = True
    """Whether anything of it is queued; asked for open ones only."""
    started: dict[int, float] = field(default_factory=dict)
    """When the execution of each stage began that counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The ledger by request id, and what is left behind: names of what should be gone."""

    ledger: dict[str, Entry]
    """Requests of this scenario, also those that no client knows to be accepted."""
    left: tuple[str, ...] = ()
    """Timers, tasks, events, raw requests, chunks, payload objects, files in shared memory."""

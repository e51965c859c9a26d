"""The states of a request and the only ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class RequestState(StrEnum):
    """Where a request is in its life."""

    OPEN = "open"
    """Accepted and not ended: something of it is queued."""
    DONE = "done"
    """Every requested output is in the record."""
    FAILED = "failed"
    """It ended with an error; an operator may open it again."""
    CANCELLED = "cancelled"
    """Its producer or an operator stopped it."""
    EXPIRED = "expired"
    """Its deadline passed first."""

    @property
    def terminal(self) -> bool:
        return self is not RequestState.OPEN


TRANSITIONS: Mapping[RequestState, frozenset[RequestState]] = MappingProxyType(
    {
        **dict.fromkeys(RequestState, frozenset()),
        RequestState.OPEN: frozenset(RequestState) - {RequestState.OPEN},
        RequestState.FAILED: frozenset({RequestState.OPEN}),  # an operator's retry, as a new run
    }
)


class IllegalTransition(Exception):
    """A request cannot go from this state to that one: a bug of the caller."""


def transition(before: RequestState, after: RequestState) -> RequestState:
    """Return `after`; raises IllegalTransition when no way leads there."""
    if after not in TRANSITIONS[before]:
        raise IllegalTransition(f"{before} -> {after}")
    return after

"""Which places a payload is put to, by its size and the rule of its edge: pure."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

from omnibus.pipeline.spec import PayloadRule


class Place(Enum):
    """Where a payload can be."""

    INLINE = auto()
    """In the message itself."""
    MEMORY = auto()
    """In shared memory of the host; there may be no room."""
    OUTPUTS = auto()
    """In the operator's own storage."""
    OBJECT = auto()
    """In the broker's object store; the last that is tried."""


def places(rule: PayloadRule, nbytes: int, *, limit: int, memory: bool, outputs: bool = False) -> Iterator[Place]:
    """The places in the order in which they are tried. Under AUTO, `limit` bytes may ride inline.

    `memory` and `outputs`: whether these places are there, and are for such payloads.
    """
    if rule is PayloadRule.INLINE or (rule is PayloadRule.AUTO and nbytes <= limit):
        yield Place.INLINE
        return
    if rule in (PayloadRule.AUTO, PayloadRule.SHM, PayloadRule.PEER, PayloadRule.DURABLE) and memory:
        yield Place.MEMORY
    yield Place.OUTPUTS if outputs else Place.OBJECT

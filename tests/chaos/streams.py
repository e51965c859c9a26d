"""Whether the pieces of a stream are the text that they must be, each once, in order: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum


class Flaw(StrEnum):
    """Find the faults of a stream."""

    MISSING = "missing"
    """Text was left out."""
    REPEATED = "repeated"
    """Text came again."""
    REORDERED = "reordered"
    """Text came after what follows it."""


def flaws_of(text: str, pieces: Sequence[str], *, complete: bool) -> Iterator[Flaw]:
    """The flaws of a stream that must say `text`, or the beginning of it where it is not complete; each kind once.

    Texts whose words are all different are told apart best: a piece is then found at one place only.
    """
    said = "".join(pieces)
    if said == text or (not complete and text.startswith(said)):
        return
    yield from dict.fromkeys(_walk(text, pieces, complete=complete))


def _walk(text: str, pieces: Sequence[str], *, complete: bool) -> Iterator[Flaw]:
    holes: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        where = at if text.startswith(piece, at) else text.find(piece)
        if where < 0:  # of no place, or of several: part of it is said again, or something in it is left out
            yield Flaw.REPEATED if len("".join(pieces)) > len(text) else Flaw.MISSING
            continue
        end = where + len(piece)
        hole = next((hole for hole in holes if hole[0] <= where and end <= hole[1]), None)
        if hole is not None:
            holes.remove(hole)
            holes += [part for part in ((hole[0], where), (end, hole[1])) if part[0] < part[1]]
            yield Flaw.REORDERED
        elif where < at:
            yield Flaw.REPEATED
        elif where > at:
            holes.append((at, where))
        at = max(at, end)
    if holes or (complete and at < len(text)):
        yield Flaw.MISSING

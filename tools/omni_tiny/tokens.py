"""Token ids of right answers, which thinker and talker are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from omnibus.omni_tiny.vocabulary import CANONICAL_BASE, CANONICAL_WORDS, CODE_BASE, END, END_ID

_IDS = {word: CANONICAL_BASE + place for place, word in enumerate(CANONICAL_WORDS)}


def canonical_ids(symbols: Sequence[str]) -> list[int]:
    """Return the token ids of a canonical description; END must be its last symbol."""
    words = [symbols[0], *(f" {symbol}" for symbol in symbols[1:-1])]
    assert symbols[-1] == END
    return [*(_IDS[word] for word in words), END_ID]


def code_ids(codes: Sequence[int]) -> list[int]:
    """Return the talker's tokens for codec codes."""
    return [CODE_BASE + code for code in codes]

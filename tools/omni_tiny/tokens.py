"""Token ids that thinker and talker are trained on, beside those of `omnibus.omni_tiny.vocabulary`."""

from __future__ import annotations

from collections.abc import Sequence

from omnibus.omni_tiny.vocabulary import CANONICAL_BASE, CANONICAL_WORDS, CODE_BASE, END, END_ID
from tools.omni_tiny.voice import SILENCE_CODE

PAD = 0
WORD_END_ID = CODE_BASE + SILENCE_CODE
"""Ends the talker's codes of a word: the silence behind it."""
USER_ID = 2
ASSISTANT_ID = 3
THINKER_VOCABULARY = 512
TALKER_VOCABULARY = 128

_IDS = {word: CANONICAL_BASE + place for place, word in enumerate(CANONICAL_WORDS)}


def canonical_ids(symbols: Sequence[str]) -> list[int]:
    """Return the token ids of a canonical description; END must be its last symbol."""
    words = [symbols[0], *(f" {symbol}" for symbol in symbols[1:-1])]
    assert symbols[-1] == END
    return [*(_IDS[word] for word in words), END_ID]


def code_ids(codes: Sequence[int]) -> list[int]:
    """Return the talker's tokens for codec codes."""
    return [CODE_BASE + code for code in codes]

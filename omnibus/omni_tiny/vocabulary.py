"""Which token means what: the ids that thinker, talker and codec agree on.

The thinker's vocabulary begins with the special tokens and the canonical words. The talker's has the same ids there, so that
the thinker's output is the talker's prompt as it is; the codec codes follow from CODE_BASE.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnibus.omni_tiny.grammar import COLOURS, END, RELATIONS, SHAPES
from omnibus.omni_tiny.voice import CODES

PAD = 0
END_ID = 1
"""Ends the thinker's answer, and is the symbol END in the talker's prompt."""
CODES_END_ID = 2
"""Ends the talker's codes (in the thinker's vocabulary: the user's turn begins)."""
USER_ID = 2
ASSISTANT_ID = 3
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
CANONICAL_WORDS = (*COLOURS, *(f" {word}" for word in (*COLOURS, *SHAPES, *RELATIONS)))
"""As text: an answer's first word has no space before it, and is always a colour."""
CANONICAL_BASE = len(SPECIAL_TOKENS)
THINKER_VOCABULARY = 512
TALKER_VOCABULARY = 128
CODE_BASE = 64

_IDS = {word: CANONICAL_BASE + place for place, word in enumerate(CANONICAL_WORDS)}


def canonical_ids(symbols: Sequence[str]) -> list[int]:
    """The token ids of a canonical description; END must be its last symbol."""
    words = [symbols[0], *(f" {symbol}" for symbol in symbols[1:-1])]
    assert symbols[-1] == END
    return [*(_IDS[word] for word in words), END_ID]


def only_canonical(token_ids: Sequence[int]) -> list[int]:
    """The canonical words among a thinker's tokens, closed with END whether or not the thinker said it."""
    words = range(CANONICAL_BASE, CANONICAL_BASE + len(CANONICAL_WORDS))
    return [*(token for token in token_ids if token in words), END_ID]


def code_ids(codes: Sequence[int]) -> list[int]:
    """The talker's tokens for codec codes."""
    return [CODE_BASE + code for code in codes]


def codes_of_ids(token_ids: Sequence[int]) -> list[int]:
    """The codec codes among a talker's tokens."""
    return [token - CODE_BASE for token in token_ids if CODE_BASE <= token < CODE_BASE + CODES]

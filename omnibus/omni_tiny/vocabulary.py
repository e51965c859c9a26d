"""The token ids that thinker, talker and codec agree on.

The thinker's vocabulary begins with the special tokens and the canonical words. The talker's has the same ids there, so that
the thinker's words are the talker's as they are; the codec codes follow from CODE_BASE.
"""

from __future__ import annotations

from collections.abc import Sequence

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left", "right", "above", "below")
END = "END"
SYMBOLS = (*COLOURS, *SHAPES, *RELATIONS, END)
"""The canonical alphabet; a symbol's index is its number in the voice."""
CODES = 1 + 3 * len(SYMBOLS)
"""Codec codes: silence, and three for each symbol."""

END_ID = 1
"""Ends the thinker's answer, and is the symbol END in the talker's prompt."""
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
CANONICAL_WORDS = (*COLOURS, *(f" {word}" for word in (*COLOURS, *SHAPES, *RELATIONS)))
"""As text: an answer's first word has no space before it, and is always a colour."""
CANONICAL_BASE = len(SPECIAL_TOKENS)
CODE_BASE = 64


def only_canonical(token_ids: Sequence[int]) -> list[int]:
    """Return the canonical words among a thinker's tokens, closed with END whether or not the thinker produced it."""
    words = range(CANONICAL_BASE, CANONICAL_BASE + len(CANONICAL_WORDS))
    return [*(token for token in token_ids if token in words), END_ID]


def codes_of_ids(token_ids: Sequence[int]) -> list[int]:
    """Return the codec codes among a talker's tokens."""
    return [token - CODE_BASE for token in token_ids if CODE_BASE <= token < CODE_BASE + CODES]

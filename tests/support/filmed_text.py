"""Texts as films: each bit is a block of a frame, which no loss of a file hides, so that a film says for whom it was made."""

from __future__ import annotations

import numpy as np

from omnibus.media import video

_BLOCKS, _BLOCK = 8, 8
"""Blocks of a side, and pixels of a block's side."""


def frames_of(text: str) -> np.ndarray:
    """The frames of an ASCII text, eight characters each: (F, 64, 64, 3), uint8."""
    data = text.encode("ascii").ljust(-(-len(text) // _BLOCKS) * _BLOCKS)
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, _BLOCKS, _BLOCKS)
    return np.repeat(np.kron(bits, np.full((_BLOCK, _BLOCK), 255, np.uint8))[..., None], 3, axis=-1)


def text_of(film: bytes) -> str:
    """The text of an encoded film."""
    shown, _ = video.frames(film)
    blocks = shown.reshape(-1, _BLOCKS, _BLOCK, _BLOCKS, _BLOCK, 3).mean(axis=(2, 4, 5))
    return np.packbits(blocks > 127).tobytes().decode("ascii", errors="replace").rstrip()

"""A piece of a sound on its way from the flow of its stage to the follower of the request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class SoundChunk:
    """A chunk of a stage's sound as an attempt made it; a later attempt begins again at 0."""

    stage_id: int
    offset: int
    """Frames of the sound before it."""
    samples: np.ndarray
    """(frames,) or (channels, frames); none in the last one."""
    sample_rate: int
    is_last: bool = False
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the follower; only then the next chunk is put."""

"""A piece of a sound or a video on its way from the flow of its stage to the follower of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from omnibus.payloads.packing import HEAVY
from omnibus.wire.chunk import RATES
from omnibus.wire.lazy_numpy import np


@dataclass(frozen=True, slots=True)
class MediaChunk:
    """A chunk of a stage's sound or video as an attempt made it; a later attempt begins again at 0."""

    stage_id: int
    offset: int
    """Frames before it."""
    frames: np.ndarray
    """Samples, (frames,) or (channels, frames), or pictures, (frames, height, width, 3); none in the last one."""
    rate: float
    """Frames a second."""
    is_last: bool = False
    modality: str = "audio"
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the follower; only then the next chunk is put."""

    @property
    def end(self) -> int:
        """Frames before the next one."""
        return self.offset + (self.frames.shape[-1] if self.modality == "audio" else len(self.frames))

    def joined(self, following: MediaChunk) -> MediaChunk | None:
        """Both as one; None where that would be heavy, or they go on as nothing does that one attempt made."""
        axis = -1 if self.modality == "audio" else 0
        shapes = {np.delete(one.frames.shape, axis).tobytes() for one in (self, following)}
        is_one = (self.modality, self.rate) == (following.modality, following.rate) and len(shapes) == 1
        if not is_one or self.frames.nbytes + following.frames.nbytes > HEAVY:
            return None
        return replace(self, frames=np.concatenate([self.frames, following.frames], axis))

    def behind(self, known: int) -> np.ndarray:
        """The part of it behind so many frames of all."""
        start = max(0, known - self.offset)
        return self.frames[..., start:] if self.modality == "audio" else self.frames[start:]


def piece_values(modality: str, frames: np.ndarray, rate: float) -> Mapping[str, Any]:
    """Frames and their rate as a client is given them."""
    return {modality: frames, RATES[modality]: rate}

"""The video of a stage that a caller sees while it is made: what of each chunk it is, and whether it goes on as it began."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omnibus.errors import EngineError
from omnibus.wire import codec
from omnibus.wire.chunk import FPS
from omnibus.wire.lazy_numpy import np
from omnibus.workers.engines.protocol import Outputs


class ChunkedVideo:
    """The video of one attempt at a stage. A caller's file cannot change its size or pace, so the video must not."""

    def __init__(self, stage: str, names: Iterable[str]) -> None:
        """`names` of outputs that may be the video; the first of them that a chunk has is it."""
        self._stage, self._names = stage, tuple(names)
        self._format: tuple[int, int, float] | None = None
        self.seconds = 0.0
        """Seconds that the last piece plays."""

    def of(self, outputs: Outputs) -> tuple[str, Outputs] | None:
        """The name of the output, and it as frames with their pace; None for a chunk without video, one of files, and of several.

        Blocks. Raises EngineError for what is no video, or does not go on as the first chunk began.
        """
        name = next((name for name in self._names if name in outputs), None)
        if name is None or isinstance(outputs[name], bytes | list):
            return None
        frames = codec.host_array(outputs[name])
        if frames.ndim == 5 or not frames.size:
            return None
        got = self._checked(name, frames, outputs.get(FPS))
        self._format = self._format or got
        if got != self._format:
            both = "{}x{} pixels at {:g} frames a second".format
            raise self._fault(name, f"a video that began with {both(*self._format)} goes on with {both(*got)}")
        self.seconds = len(frames) / got[2] if got[2] > 0 else 0.0
        return name, {name: frames, FPS: got[2]}

    def _checked(self, name: str, frames: np.ndarray, fps: Any) -> tuple[int, int, float]:
        """Width, height and pace."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise self._fault(name, f"a video must be uint8 of shape (F, H, W, 3), not {frames.dtype} {frames.shape}")
        try:
            return frames.shape[2], frames.shape[1], float(fps)
        except (TypeError, ValueError) as error:
            raise self._fault(name, f"a video has frames and their fps, frames a second, not {fps!r}") from error

    def _fault(self, name: str, why: str) -> EngineError:
        return EngineError(f"stage {self._stage!r}: output {name!r}: {why}")

"""The sound of a stage that a caller hears while it is made: what of each chunk it is, and whether it goes on as it began."""

from __future__ import annotations

from collections.abc import Iterable

from omnibus.errors import EngineError
from omnibus.wire.chunk import SAMPLE_RATE
from omnibus.workers.engines.protocol import Outputs
from omnibus.workers.output_files import samples_of


class ChunkedSound:
    """The sound of one attempt at a stage. A caller's file cannot change its rate or channels, so the sound must not."""

    def __init__(self, stage: str, names: Iterable[str]) -> None:
        """`names` of outputs that may be the sound; the first of them that a chunk has is it."""
        self._stage, self._names = stage, tuple(names)
        self._format: tuple[int, int] | None = None
        self.seconds = 0.0
        """Seconds that the last piece plays."""

    def of(self, outputs: Outputs) -> tuple[str, Outputs] | None:
        """The name of the output, and it as samples with their rate; None for a chunk without sound and one of files. Blocks.

        Raises EngineError for what is no sound, or does not go on as the first chunk began.
        """
        name = next((name for name in self._names if name in outputs), None)
        if name is None or isinstance(outputs[name], bytes | list):
            return None
        from omnibus.media import sound  # noqa: PLC0415 only stages with sound load its libraries

        try:
            samples, rate = samples_of(outputs[name], outputs.get(SAMPLE_RATE))
            if not samples.size:
                return None
            planes = sound.planes(samples, rate)
            got = rate, len(planes)
        except EngineError as error:
            raise self._fault(name, error.message) from error
        self._format = self._format or got
        if got != self._format:
            both = "{} Hz and {} channels".format
            raise self._fault(name, f"a sound that began with {both(*self._format)} goes on with {both(*got)}")
        self.seconds = len(planes[0]) / rate
        return name, {name: samples, SAMPLE_RATE: rate}

    def _fault(self, name: str, why: str) -> EngineError:
        return EngineError(f"stage {self._stage!r}: output {name!r}: {why}")

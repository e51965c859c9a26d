"""The engine itself, imported in the replicas of its stages only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from omnibus.errors import InvalidRequest, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import EngineStats, Finished, Item, Job, TextDelta


def create(stage: StageSpec) -> ShoutEngine:
    """The engine of a stage, not yet started."""
    mark = stage.engine_args.get("mark", "!")
    if not isinstance(mark, str):
        raise PipelineError("must be text", field="engine_args.mark")
    return ShoutEngine(mark)


class ShoutEngine:
    """Says each word of the prompt in capitals, and puts a mark behind the last."""

    def __init__(self, mark: str) -> None:
        self.outputs: Mapping[str, str] = {"text": "text"}
        self._mark = mark
        self._running = 0

    async def start(self) -> None:
        """There is nothing to load."""

    async def generate(self, job: Job) -> AsyncIterator[Item]:
        self._running += 1
        try:
            asked = job.engine_input.text  # None where a chat's messages came
            text = (job.stage_input.request.text() if asked is None else asked).upper() + self._mark
            for index, word in enumerate(text.split(" ")):
                yield TextDelta(text=f" {word}" if index else word)
            yield Finished(outputs={"text": text})
        finally:
            self._running -= 1

    def progress(self) -> int:
        """Each word is a sign of it."""
        return 0

    async def abort(self, rid: str) -> None:
        """A job is over before anybody could abort it."""

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running)

    def dead(self) -> Exception | None:
        return None

    async def wait_dead(self) -> Exception:
        return await asyncio.get_running_loop().create_future()

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG002
        raise InvalidRequest(f"shout has no control method {method!r}", param="method")

    async def close(self) -> None:
        """There is nothing to free."""

"""A stage whose methods can be called while it works, and which says what it was asked with."""

from __future__ import annotations

import asyncio
import json

from omnibus.workers.engines.protocol import StageInput


class Callable:
    """Answers with what the request brought; `nap` keeps a call waiting, `sleep` and `wake_up` count."""

    outputs = {"text": "text"}  # noqa: RUF012 read by the engine
    rpc_methods = ("nap", "sleep", "wake_up", "naps")

    def __init__(self) -> None:
        self._asleep = False

    async def __call__(self, stage_input: StageInput) -> str:
        assert not self._asleep, "a task came in while the stage slept"
        request = stage_input.request
        before = [json.loads(outputs["text"]) for outputs in stage_input.sources.values()]
        return json.dumps([*before, {"trace": dict(request.trace), "lane": request.lane, "priority": request.priority}])

    async def nap(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "well slept"

    async def sleep(self) -> None:
        self._asleep = True

    async def wake_up(self) -> None:
        self._asleep = False

    async def naps(self) -> bool:
        return self._asleep


class Sleepless(Callable):
    """Tries to sleep for as long as it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    async def sleep(self) -> None:
        self.tries += 1
        await asyncio.Event().wait()

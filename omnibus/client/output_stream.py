"""The outputs of one request of a façade, as an asynchronous iterator that a caller may leave and take up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Self

from omnibus.client.output_queue import OutputQueue
from omnibus.client.request_outputs import OmniRequestOutput


@dataclass(slots=True)
class Following:
    """A request on its way: its submission, the queue of its outputs, and what became of it."""

    outputs: OutputQueue[OmniRequestOutput]
    submitting: asyncio.Task[None]
    failures: list[Exception] = field(default_factory=list)
    """Errors of sending further segments."""
    is_over: bool = False

    @property
    def is_accepted(self) -> bool:
        """Whether it was submitted, so far as anybody knows: one that was cancelled on its way may have arrived."""
        task = self.submitting
        return not task.done() or task.cancelled() or task.exception() is None


class OutputStream:
    """Iterates over the outputs of a request. A wait for one may be given up, as `asyncio.wait_for` does: the next one gets it.

    `aclose` it when it is left early (`contextlib.aclosing`), which aborts the request; so does dropping it.
    """

    def __init__(self, lifetime: AsyncGenerator[Following, None]) -> None:
        """`lifetime` yields once: it submits before, and cleans up when it is closed, by the event loop if by nobody else."""
        self._lifetime = lifetime
        self._following: Following | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OmniRequestOutput:
        following = self._following
        if following is None:
            following = self._following = await anext(self._lifetime)
        try:
            output = await _next(following)
        except asyncio.CancelledError:
            del self  # else the cancelled task would keep what its caller drops
            raise
        except Exception:
            await self.aclose()
            raise
        if output is None:
            await self.aclose()
            raise StopAsyncIteration
        return output

    async def aclose(self) -> None:
        """End it; the request is aborted unless it has ended."""
        await self._lifetime.aclose()
        if self._following is not None:
            self._following.is_over = True


async def _next(following: Following) -> OmniRequestOutput | None:
    """The next output that says anything, None behind the last one; raises what the request failed of."""
    if following.is_over:
        return None
    await asyncio.wait({following.submitting})
    following.submitting.result()
    while not following.is_over:
        output = await following.outputs.take_async(None)  # bounded by the request's deadline, and by the engine's life
        assert output is not None
        following.is_over = output.finished
        if following.failures:
            raise following.failures[0]
        output.raise_for_failure()
        if output.delta or output.piece or output.segment_finished or output.output or output.aborted:
            return output
    return None

"""Responses in the background, as a caller reads them who comes back whenever the connection breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import openai
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent

LAST = ("response.completed", "response.failed", "response.incomplete")
_BETWEEN = 0.1
"""Seconds between two tries."""


async def read_on(
    client: AsyncOpenAI, response_id: str, events: list[ResponseStreamEvent], within: float = 60.0
) -> None:
    """Append the events behind those that are there, to the last one, however often that takes a new connection."""
    async with asyncio.timeout(within):
        while not events or events[-1].type not in LAST:
            try:
                after = events[-1].sequence_number if events else openai.omit
                stream = await client.responses.retrieve(response_id, stream=True, starting_after=after)
                async for event in stream:
                    events.append(event)  # noqa: PERF401 those before a break count
            except openai.NotFoundError:
                raise
            except openai.APIError:  # a front door that is dead, or stops
                await asyncio.sleep(_BETWEEN)


def check_events(events: Sequence[ResponseStreamEvent], response: Response) -> None:
    """Raises AssertionError unless each event is there once, and they make the response, which is completed."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert (response.status, response.output_text) == ("completed", text)
    assert events[-1].type == "response.completed"
    assert events[-1].response == response

"""A streamed answer as an HTTP client reads it: every piece of text with the moment it came."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx


class Stream:
    """A completion that streams; `pieces` grows as it is read."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.pieces: list[tuple[float, str]] = []
        """(seconds of the monotonic clock, text), empty texts left out."""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.done = False
        """The stream's own end has come."""
        self._lines = response.aiter_lines()

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    @property
    def rid(self) -> str:
        return str(self.response.headers["x-request-id"])

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text; raises AssertionError for an error in the stream."""
        async for line in self._lines:
            if line == "data: [DONE]":
                self.done = True
            elif line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                if piece := self._take(chunk):
                    yield piece

    def _take(self, chunk: dict[str, Any]) -> str:
        self.usage = chunk.get("usage") or self.usage
        text = "".join(choice["text"] for choice in chunk["choices"])
        for choice in chunk["choices"]:
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        if text:
            self.pieces.append((time.monotonic(), text))
        return text

    async def read(self) -> None:
        """Read to the end of the stream."""
        async for _ in self:
            pass

    async def read_to(self, characters: int) -> None:
        """Read until so much text has come."""
        async for _ in self:
            if len(self.text) >= characters:
                return
        raise AssertionError(f"the stream ended after {len(self.text)} characters")

    def longest_pause(self, since: float = 0.0) -> float:
        """Seconds between two pieces, at most, of which the second came after `since` on the monotonic clock."""
        times = [at for at, _ in self.pieces]
        return max(later - earlier for earlier, later in pairwise(times) if later > since)


@asynccontextmanager
async def streamed(
    http: httpx.AsyncClient, model: str, prompt: str, *, key: str | None = None, **fields: Any
) -> AsyncIterator[Stream]:
    """Ask for a completion as a stream, under an idempotency key where one is given."""
    headers = {"Idempotency-Key": key} if key is not None else {}
    body = {"model": model, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}, **fields}
    async with http.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        yield Stream(response)

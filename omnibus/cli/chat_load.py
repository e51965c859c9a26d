"""Streamed chats sent in a closed loop, and the times at which their callers saw what."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles
from typing import Any

import msgspec

from omnibus.cli.load_client import HttpClient, clients
from omnibus.errors import ConfigError

_PATH = "/v1/chat/completions"
_MOST_REASON = 200


@dataclass(slots=True)
class LoadFigures:
    """The observations of one load. Times are seconds since a request was sent."""

    latencies: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    first_audio: list[float] = field(default_factory=list)
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    @property
    def failed(self) -> int:
        return self.failures.total()

    def as_json(self) -> dict[str, Any]:
        wall = self.wall or 1.0
        return {
            "done": len(self.latencies),
            "failed": self.failed,
            "failures": dict(self.failures.most_common()),
            "wall_seconds": round(self.wall, 3),
            "requests_per_second": round(len(self.latencies) / wall, 3),
            "tokens_per_second": round(self.tokens / wall, 3),
            "seconds": {
                "answer": spread(self.latencies),
                "first_token": spread(self.first_tokens),
                "first_audio": spread(self.first_audio),
            },
        }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Quantiles of a sample; None of none. Pure."""
    if not values:
        return None
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    found = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 6) for name, value in found.items()}


class ChatReader:
    """Reads the events of one streamed chat, as their bytes come, and when its first token and first sound did."""

    def __init__(self) -> None:
        self._rest = b""
        self._sent = time.perf_counter()
        self.first_token: float | None = None
        self.first_audio: float | None = None
        self.tokens = 0
        self.error: str | None = None
        self.is_whole = False

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                self._event(line[6:].strip())

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.is_whole = True
            return
        event, seconds = msgspec.json.decode(data), time.perf_counter() - self._sent
        if "error" in event:
            self.error = str(event["error"].get("message", event["error"]))
        self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            if self.first_token is None and (delta.get("content") or delta.get("reasoning") or delta.get("tool_calls")):
                self.first_token = seconds
            if self.first_audio is None and (delta.get("audio") or {}).get("data"):
                self.first_audio = seconds


async def run_load(
    url: str, body: bytes, *, count: int, width: int, timeout: float, headers: Mapping[str, str]
) -> LoadFigures:
    """Send `count` requests, `width` at a time; raises ConfigError where nobody listens."""
    load = _Load(body, timeout, iter(range(count)))
    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(width, count)):
                connecting = partial(clients, url, 1, headers)
                group.create_task(load.client(connecting), name=f"client-{number}")
    except* OSError as errors:
        raise ConfigError(f"nobody answers at {url}: {errors.exceptions[0]}", param="url") from errors
    load.found.wall = time.perf_counter() - started
    return load.found


@dataclass(slots=True)
class _Load:
    """The body, the requests left and the observations that all clients of a load share."""

    body: bytes
    timeout: float
    left: Iterator[int]
    found: LoadFigures = field(default_factory=LoadFigures)

    async def client(self, connecting: Callable[[], AbstractAsyncContextManager[list[HttpClient]]]) -> None:
        """Send the next request when the last is answered, over a new connection where the old one is of no more use."""
        for _ in self.left:
            # One whose request has failed is closed at once: its server may work on it for long.
            async with connecting() as (client,):
                while await self._ask(client) and client.is_open and next(self.left, None) is not None:
                    pass

    async def _ask(self, client: HttpClient) -> bool:
        reader, sent = ChatReader(), time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):
                await client.post(_PATH, self.body, reader.feed)
            reason = reader.error or ("" if reader.is_whole else "the stream broke off")
        except TimeoutError:
            reason = f"no answer within {self.timeout:g} s"
        except RuntimeError as error:
            reason = str(error)
        if reason:
            self.found.failures[reason[:_MOST_REASON]] += 1
            return False
        self.found.latencies.append(time.perf_counter() - sent)
        self.found.tokens += reader.tokens
        for times, first in (
            (self.found.first_tokens, reader.first_token),
            (self.found.first_audio, reader.first_audio),
        ):
            if first is not None:
                times.append(first)
        return True

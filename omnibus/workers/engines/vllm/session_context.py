"""The prompts of a session: each is all that was given and answered so far, and what is new."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np

from omnibus.errors import EngineRejected
from omnibus.wire.request import Message
from omnibus.workers.engines.protocol import EngineInput

Render = Callable[[EngineInput], Awaitable[Any]]
AHEAD = 32
"""Tokens, or characters, that come before a prompt is computed as far as it is known: each time costs a step of the engine."""


class SessionContext:
    """Collects the segments of an open input and their answers. Turns of a chat are rendered together, as one conversation."""

    def __init__(self, render: Render, bos: int | None) -> None:
        """`bos` begins a text, and so has no place inside one."""
        self._render, self._bos = render, bos
        self._ids: list[int] = []
        self._turns: tuple[Message, ...] = ()
        self._before_turns: list[int] = []
        self._has_files = False

    async def prompt(self, given: EngineInput) -> tuple[Any, int]:
        """The prompt that ends with a segment, and how many tokens it has that are new; raises EngineRejected."""
        if given.messages is None:
            rendered, before, self._turns = await self._render(given), self._ids, ()
        else:
            self._before_turns = self._before_turns if self._turns else self._ids
            self._turns = (*self._turns, *given.messages)
            rendered, before = await self._render(EngineInput(messages=self._turns)), self._before_turns
        if rendered["type"] == "embeds":
            raise EngineRejected("an open input takes no embeddings: vLLM cannot append them", param="embeds")
        if before and (self._has_files or rendered["type"] != "token"):
            raise EngineRejected(
                "files in an open input need turns of a chat from its first segment on", param="messages"
            )
        self._has_files = rendered["type"] != "token"
        ids = list(rendered["prompt_token_ids"])
        if before and given.token_ids is None and ids[:1] == [self._bos]:
            del ids[0]
        if not ids:
            raise EngineRejected("a segment has no tokens", param="prompt")
        known, whole = len(self._ids), [*before, *ids]
        self._ids = whole
        return {**rendered, "prompt_token_ids": whole}, max(len(whole) - known, 0)

    def answered(self, text: str, token_ids: Sequence[int], ends: AbstractSet[int]) -> None:
        """Note an answer. One of the tokens that end it is no part of it."""
        self._ids = [*self._ids, *(token_ids[:-1] if token_ids[-1:] and token_ids[-1] in ends else token_ids)]
        if self._turns:
            self._turns = (*self._turns, Message(role="assistant", content=text))


async def known_so_far(parts: AsyncIterator[EngineInput]) -> AsyncGenerator[tuple[EngineInput, bool], None]:
    """The prompt that parts make together, each time that it has grown by AHEAD, and at the end, which is then true.

    Raises EngineRejected for no part at all, as when a source had nothing to say.
    """
    whole, length, grown = EngineInput(), 0, 0
    async for part in parts:
        whole = _joined(whole, part)
        size = len(whole.token_ids if whole.token_ids is not None else whole.text or "")
        grown, length = grown + size - length, size
        if grown >= AHEAD and whole.messages is None and whole.embeds is None:
            grown = 0
            yield whole, False
    yield whole, True


def _joined(first: EngineInput, second: EngineInput) -> EngineInput:
    fields = {
        name: two if (one := getattr(first, name)) is None else one if two is None else _after(one, two)
        for name in ("text", "messages", "token_ids", "embeds")
        for two in (getattr(second, name),)
    }
    return replace(second, **fields, values={**first.values, **second.values})


def _after(one: Any, two: Any) -> Any:
    if isinstance(one, np.ndarray):
        return np.concatenate([one, two])
    return one + two if isinstance(one, str) else [*one, *two]

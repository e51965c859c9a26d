"""The prompts of one job on their way into vLLM: each goes on, where it can, behind what EngineCore has of the last one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

from vllm import SamplingParams
from vllm.engine.protocol import StreamingInput

Generate = Callable[[Any, SamplingParams], AsyncGenerator[Any, None]]


class PromptFeed:
    """Has vLLM write a text after each prompt. An asynchronous context; leaving it aborts what is not complete."""

    def __init__(self, generate: Generate, *, streams: bool) -> None:
        """`generate` is AsyncLLM's, for this job. Where it `streams`, its requests stay open for vLLM's `StreamingInput`."""
        self._generate, self.streams = generate, streams
        self._outputs: AsyncGenerator[Any, None] | None = None
        self._inputs: asyncio.Queue[StreamingInput] = asyncio.Queue(1)
        self.held: list[int] = []
        """Tokens of the last prompt and its text that EngineCore keeps."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def outputs(self, prompt: Any, params: SamplingParams) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for a prompt, one text at a time; raises what vLLM does."""
        if not (self.streams and prompt["type"] == "token"):
            await self.close()
            self._outputs = self._generate(prompt, params)
            async for output in self._outputs:
                yield output
            return
        if not self.goes_on(prompt["prompt_token_ids"]):
            await self.close()
            self._inputs = asyncio.Queue(1)
            self._outputs = self._generate(_fed(self._inputs), params)
        assert self._outputs is not None
        ids, made = list(prompt["prompt_token_ids"]), list[int]()
        rest = {**prompt, "prompt_token_ids": ids[len(self.held) :]}
        rest.pop("prompt", None)  # of which vLLM would keep a copy
        self._inputs.put_nowait(StreamingInput(rest, params))
        async for output in self._outputs:
            part = output.outputs[0]
            made.extend(part.token_ids)
            if part.finish_reason is not None:
                # vLLM drops the last token of a text: it was not computed. Where it counts, the next prompt has it.
                self.held = [*ids, *made[:-1]]
            yield output
            if part.finish_reason is not None:
                return

    def goes_on(self, ids: list[int]) -> bool:
        """Whether a prompt begins with all that EngineCore keeps."""
        return bool(self.held) and len(ids) > len(self.held) and ids[: len(self.held)] == self.held

    async def close(self) -> None:
        """Abort the request inside vLLM that is still open."""
        outputs, self._outputs, self.held = self._outputs, None, []
        if outputs is not None:
            await outputs.aclose()


async def _fed(inputs: asyncio.Queue[StreamingInput]) -> AsyncGenerator[StreamingInput, None]:
    while True:  # until vLLM cancels it with its request
        yield await inputs.get()

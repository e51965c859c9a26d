"""Tokens so far in every chunk of a streamed text, by the unmodified `openai` package."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from omnibus.broker.connection import Connection
from tests.support.front import front, omni_sim

pytestmark = pytest.mark.integration
WORDS = "one two three four five six seven eight"
SO_FAR: Any = {"include_usage": True, "continuous_usage_stats": True}


async def test_every_chunk_of_a_stream_has_the_tokens_so_far(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline, token_rate=40)) as door:
        chats = await door.openai.chat.completions.create(
            model=pipeline, messages=[{"role": "user", "content": WORDS}], stream=True, stream_options=SO_FAR
        )
        texts = await door.openai.completions.create(model=pipeline, prompt=WORDS, stream=True, stream_options=SO_FAR)
        chat_chunks = [chunk async for chunk in chats]
        text_chunks = [chunk async for chunk in texts]
        plain = await door.openai.chat.completions.create(
            model=pipeline, messages=[{"role": "user", "content": WORDS}], stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        assert [chunk.usage for chunk in [one async for one in plain][:-1] if chunk.usage is not None] == []
        with pytest.raises(openai.BadRequestError, match="include_usage") as refusal:
            await door.openai.completions.create(
                model=pipeline, prompt=WORDS, stream=True, stream_options={"continuous_usage_stats": True}  # type: ignore[call-overload]
            )  # fmt: skip
        assert refusal.value.param == "stream_options.continuous_usage_stats"
    for chunks in (chat_chunks, text_chunks):
        counts = [(one.usage.prompt_tokens, one.usage.completion_tokens) for one in chunks if one.usage is not None]
        assert len(counts) > 3
        assert {prompt for prompt, _ in counts} == {8}
        assert [written for _, written in counts] == sorted(written for _, written in counts)
        assert counts[0][1] < counts[-1][1] == 8
        total = chunks[-1].usage
        assert total is not None
        assert total.total_tokens == 16

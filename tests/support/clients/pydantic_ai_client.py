"""pydantic-ai: `python pydantic_ai_client.py URL`, prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


async def text(url: str) -> dict[str, Any]:
    served = OpenAIChatModel("smollm2", provider=OpenAIProvider(base_url=url, api_key="any"))
    settings: Any = {"temperature": 0.0, "max_tokens": 300}
    by_tool = Agent(served, output_type=ToolOutput(City, strict=True), model_settings=settings)
    native = Agent(served, output_type=NativeOutput(City), model_settings=settings)
    plain = Agent(served, model_settings=settings, system_prompt="Answer in one sentence.")
    async with plain.run_stream("What is the capital of France?") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True)]
        tokens = stream.usage
    return {
        "by_tool": (await by_tool.run("Where is the Eiffel tower?")).output.model_dump(),
        "native": (await native.run("Where is the Eiffel tower?")).output.model_dump(),
        "text": (await plain.run("What is the capital of France?")).output,
        "streamed": "".join(pieces), "pieces": len(pieces), "tokens": tokens.output_tokens,
    }  # fmt: skip


async def other(url: str) -> dict[str, Any]:
    omni = Agent(OpenAIChatModel("omni-tiny", provider=OpenAIProvider(base_url=url, api_key="any")))
    return {"said": (await omni.run("a red circle left of a blue square")).output}


async def main() -> None:
    print(json.dumps({"text": await text(sys.argv[1]), "other": await other(sys.argv[1])}))


if __name__ == "__main__":
    asyncio.run(main())

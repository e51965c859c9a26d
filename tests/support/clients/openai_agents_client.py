"""OpenAI's agents: `python openai_agents_client.py URL`, prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


@function_tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


async def text(url: str) -> dict[str, Any]:
    model = OpenAIChatCompletionsModel(
        model="smollm2", openai_client=AsyncOpenAI(base_url=url, api_key="any", max_retries=0)
    )
    settings = ModelSettings(temperature=0.0, max_tokens=200, include_usage=True)
    forced = settings.resolve(ModelSettings(tool_choice="required", parallel_tool_calls=False))
    plain = Agent(name="plain", model=model, model_settings=settings, instructions="Answer in one sentence.")
    forecaster = Agent(
        name="forecaster", model=model, model_settings=forced, tools=[weather], tool_use_behavior="stop_on_first_tool"
    )
    native = Agent(name="native", model=model, model_settings=settings, output_type=City)
    streamed = Runner.run_streamed(plain, "What is the capital of France?")
    kinds = [event.data.type async for event in streamed.stream_events() if event.type == "raw_response_event"]
    return {
        "text": (await Runner.run(plain, "What is the capital of France?")).final_output,
        "streamed": streamed.final_output,
        "deltas": kinds.count("response.output_text.delta"),
        "tokens": streamed.context_wrapper.usage.output_tokens,
        "tool": (await Runner.run(forecaster, "What is the weather in Paris?")).final_output,
        "object": (await Runner.run(native, "Where is the Eiffel tower?")).final_output.model_dump(),
    }


async def other(url: str) -> dict[str, Any]:
    client = AsyncOpenAI(base_url=url, api_key="any", max_retries=0)
    omni = Agent(name="omni", model=OpenAIChatCompletionsModel(model="omni-tiny", openai_client=client))
    return {"said": (await Runner.run(omni, "a red circle left of a blue square")).final_output}


async def main() -> None:
    set_tracing_disabled(disabled=True)
    print(json.dumps({"text": await text(sys.argv[1]), "other": await other(sys.argv[1])}))


if __name__ == "__main__":
    asyncio.run(main())

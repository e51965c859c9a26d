"""OpenAI's agents: an agent with a tool. `pip install openai-agents`, then `python with_openai_agents.py MODEL [URL]`."""

import sys
from typing import Literal

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

model, url = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8000/v1"])[0]
set_tracing_disabled(disabled=True)  # traces would go to OpenAI


@function_tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


agent = Agent(
    name="forecaster",
    model=OpenAIChatCompletionsModel(model=model, openai_client=AsyncOpenAI(base_url=url, api_key="any")),
    model_settings=ModelSettings(temperature=0.0, max_tokens=100, tool_choice="required", parallel_tool_calls=False),
    tools=[weather],
    tool_use_behavior="stop_on_first_tool",
)
print(Runner.run_sync(agent, "What is the weather in Paris?").final_output)

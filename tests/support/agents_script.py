"""LangChain and pydantic-ai ask a served model: `python agents_script.py URL MODEL`, in a venv that has them; prints JSON.

Nothing of Omnibus is imported here.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "What is the weather in Paris?"


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


def langchain(url: str, model: str) -> dict[str, Any]:
    chat = ChatOpenAI(model=model, base_url=url, api_key="any", max_retries=0, temperature=0.0, max_tokens=300)
    caller = chat.bind_tools([weather], tool_choice="any", strict=True, parallel_tool_calls=False)
    called = caller.invoke(QUESTION)
    pieces = list(caller.stream(QUESTION))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed = streamed + piece
    result = weather.invoke(called.tool_calls[0])
    after = chat.bind_tools([weather]).invoke([("user", QUESTION), called, result])
    likely = chat.bind(logprobs=True, top_logprobs=2).invoke("Say hello.")
    several = ChatOpenAI(model=model, base_url=url, api_key="any", temperature=1.0, max_tokens=8, n=2).generate(
        [[HumanMessage("Say hello.")]]
    )
    return {
        "calls": called.tool_calls, "streamed": streamed.tool_calls, "pieces": len(pieces), "after": str(after.content),
        "parsed": chat.with_structured_output(City).invoke("Where is the Eiffel tower?").model_dump(),
        "logprobs": len(likely.response_metadata["logprobs"]["content"]),
        "tokens": likely.usage_metadata["output_tokens"], "choices": len(several.generations[0]),
    }  # fmt: skip


def pydantic_ai(url: str, model: str) -> dict[str, Any]:
    served = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="any"))
    settings: Any = {"temperature": 0.0, "max_tokens": 300}
    by_tool = Agent(served, output_type=ToolOutput(City, strict=True), model_settings=settings)
    native = Agent(served, output_type=NativeOutput(City), model_settings=settings)
    plain = Agent(served, model_settings=settings)
    return {
        "by_tool": by_tool.run_sync("Where is the Eiffel tower?").output.model_dump(),
        "native": native.run_sync("Where is the Eiffel tower?").output.model_dump(),
        "text": plain.run_sync("What is the capital of France?").output,
    }


if __name__ == "__main__":
    _, url, model = sys.argv
    print(json.dumps({"langchain": langchain(url, model), "pydantic_ai": pydantic_ai(url, model)}, default=str))

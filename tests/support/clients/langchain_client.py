"""LangChain: `python langchain_client.py URL`, prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

QUESTION = "What is the weather in Paris?"
SHAPES = "a red circle left of a blue square"


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


def text(url: str) -> dict[str, Any]:
    served: dict[str, Any] = {"model": "smollm2", "base_url": url, "api_key": "any", "max_retries": 0}
    chat = ChatOpenAI(**served, temperature=0.0, max_tokens=300)
    caller = chat.bind_tools([weather], tool_choice="any", strict=True, parallel_tool_calls=False)
    called = caller.invoke(QUESTION)
    pieces = list(caller.stream(QUESTION))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed = streamed + piece
    result = weather.invoke(called.tool_calls[0])
    after = chat.bind_tools([weather]).invoke([("user", QUESTION), called, result])
    likely = chat.bind(logprobs=True, top_logprobs=2).invoke("Say hello.")
    several = ChatOpenAI(**served, temperature=1.0, max_tokens=8, n=2).generate([[HumanMessage("Say hello.")]])
    continued = OpenAI(**served, temperature=0.0, max_tokens=8).invoke("The capital of France is")
    return {
        "calls": called.tool_calls, "streamed": streamed.tool_calls, "pieces": len(pieces), "after": str(after.content),
        "parsed": chat.with_structured_output(City).invoke("Where is the Eiffel tower?").model_dump(),
        "logprobs": len(likely.response_metadata["logprobs"]["content"]),
        "tokens": likely.usage_metadata["output_tokens"], "choices": len(several.generations[0]),
        "async": asyncio.run(chat.ainvoke("What is the capital of France?")).content, "continued": continued,
    }  # fmt: skip


def other(url: str) -> dict[str, Any]:
    """Vectors; text, picture and sound of a chat."""
    served: dict[str, Any] = {"base_url": url, "api_key": "any", "max_retries": 0}
    # It sends token ids of OpenAI's own vocabulary, unless it is told not to.
    vectors = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False, **served)
    omni = ChatOpenAI(model="omni-tiny", **served)
    spoken = omni.bind(modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}).invoke(SHAPES)
    painted = omni.bind(modalities=["text", "image"]).invoke(SHAPES)
    return {
        "vectors": [len(one) for one in vectors.embed_documents(["a cat", "a kitten"])],
        "said": omni.invoke(SHAPES).content,
        "sound": base64.b64decode(spoken.additional_kwargs["audio"]["data"])[:4].decode(),
        "parts": [part["type"] for part in painted.content],
    }


if __name__ == "__main__":
    print(json.dumps({"text": text(sys.argv[1]), "other": other(sys.argv[1])}, default=str))

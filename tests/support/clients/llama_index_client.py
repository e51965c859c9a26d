"""LlamaIndex: `python llama_index_client.py URL`, prints what it saw as JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

QUESTION = [ChatMessage(role="user", content="What is the capital of France?")]
SHAPES = "a red circle left of a blue square"


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


def of(model: str, url: str, **more: Any) -> OpenAILike:
    return OpenAILike(
        model=model, api_base=url, api_key="any", max_retries=0, temperature=0.0, context_window=8192, **more
    )


def text(url: str) -> dict[str, Any]:
    chat = of("smollm2", url, is_chat_model=True, is_function_calling_model=True, strict=True, max_tokens=200)
    bare = of("smollm2", url, is_chat_model=False, max_tokens=8)
    called = chat.predict_and_call(
        [FunctionTool.from_defaults(weather)], "What is the weather in Paris?", tool_required=True
    )
    formed = of("smollm2", url, is_chat_model=True, max_tokens=200, should_use_structured_outputs=True)
    return {
        "whole": chat.chat(QUESTION).message.content,
        "streamed": "".join(piece.delta or "" for piece in chat.stream_chat(QUESTION)),
        "async": asyncio.run(chat.achat(QUESTION)).message.content,
        "continued": bare.complete("The capital of France is").text,
        "streamed_on": "".join(piece.delta or "" for piece in bare.stream_complete("The capital of France is")),
        "tool": str(called),
        "object": formed.structured_predict(City, PromptTemplate("Where is the Eiffel tower?")).model_dump(),
    }


def other(url: str) -> dict[str, Any]:
    vectors = OpenAILikeEmbedding(model_name="minilm", api_base=url, api_key="any")
    omni = of("omni-tiny", url, is_chat_model=True)
    return {
        "vectors": [len(one) for one in vectors.get_text_embedding_batch(["a cat", "a kitten"])],
        "said": omni.chat([ChatMessage(role="user", content=SHAPES)]).message.content,
    }


if __name__ == "__main__":
    print(json.dumps({"text": text(sys.argv[1]), "other": other(sys.argv[1])}))

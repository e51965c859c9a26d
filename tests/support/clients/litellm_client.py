"""LiteLLM: `python litellm_client.py URL`, prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import warnings
from typing import Any

import litellm

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
                       "additionalProperties": False},
    },
}  # fmt: skip
CITY = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": {
        "type": "object", "properties": {"name": {"enum": ["Paris", "Rome"]}}, "required": ["name"],
    }},
}  # fmt: skip
SHAPES = "a red circle left of a blue square"


def of(model: str, url: str) -> dict[str, Any]:
    return {"model": f"openai/{model}", "api_base": url, "api_key": "any", "num_retries": 0}


def text(url: str) -> dict[str, Any]:
    asked = {**of("smollm2", url), "temperature": 0.0, "max_tokens": 24}
    streamed = list(litellm.completion(messages=QUESTION, stream=True, stream_options={"include_usage": True}, **asked))
    called = litellm.completion(
        messages=QUESTION, tools=[WEATHER], tool_choice="required", **{**asked, "max_tokens": 200}
    )
    formed = litellm.completion(messages=QUESTION, response_format=CITY, **{**asked, "max_tokens": 100})
    likely = litellm.completion(messages=QUESTION, logprobs=True, top_logprobs=2, **asked)
    several = litellm.batch_completion(messages=[QUESTION, QUESTION], **asked)
    asynchronous = asyncio.run(litellm.acompletion(messages=QUESTION, **asked))
    continued = litellm.text_completion(prompt="The capital of France is", **asked)
    return {
        "whole": litellm.completion(messages=QUESTION, **asked).choices[0].message.content,
        "streamed": "".join(piece.choices[0].delta.content or "" for piece in streamed if piece.choices),
        "usage": next(piece.usage.total_tokens for piece in streamed if getattr(piece, "usage", None)),
        "call": json.loads(called.choices[0].message.tool_calls[0].function.arguments),
        "form": json.loads(formed.choices[0].message.content),
        "logprobs": len(likely.choices[0].logprobs.content), "tokens": likely.usage.completion_tokens,
        "batch": [one.choices[0].message.content for one in several],
        "async": asynchronous.choices[0].message.content, "continued": continued.choices[0].text,
        "refused": refusal(lambda: litellm.completion(messages=QUESTION, **{**asked, "max_tokens": 0})),
        "unknown": refusal(lambda: litellm.completion(messages=QUESTION, **of("nothing", url))),
    }  # fmt: skip


def refusal(ask: Any) -> str:
    """The class of the error that the library makes of ours."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001 its class is what is asked for
        return type(error).__name__
    return "none"


def other(url: str) -> dict[str, Any]:
    """Vectors, pictures, speech."""
    vectors = litellm.embedding(input=["a cat", "a kitten"], **of("minilm", url))
    picture = litellm.image_generation(prompt=SHAPES, **of("omni-tiny", url))
    speech = litellm.speech(input="a blue circle", voice="alloy", response_format="wav", **of("omni-tiny", url))
    chat = litellm.completion(
        messages=[{"role": "user", "content": SHAPES}], modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"},
        **of("omni-tiny", url),
    )  # fmt: skip
    return {
        "vectors": [len(one["embedding"]) for one in vectors.data],
        "picture": base64.b64decode(picture.data[0].b64_json)[:4].hex(),
        "speech": speech.content[:4].decode(),
        "said": chat.choices[0].message.audio.transcript,
        "sound": base64.b64decode(chat.choices[0].message.audio.data)[:4].decode(),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # its own models, which complain of each other's fields
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    print(json.dumps({"text": text(sys.argv[1]), "other": other(sys.argv[1])}))

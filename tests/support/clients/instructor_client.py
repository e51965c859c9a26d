"""instructor: `python instructor_client.py URL`, prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

WHERE: Any = [{"role": "user", "content": "Where is the Eiffel tower?"}]


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


def text(url: str) -> dict[str, Any]:
    plain = OpenAI(base_url=url, api_key="any", max_retries=0)
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": WHERE,
        "temperature": 0.0,
        "max_tokens": 200,
        "max_retries": 0,
    }
    schema = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    partial = list(schema.create_partial(response_model=City, **asked))
    whole, completion = schema.create_with_completion(response_model=City, **asked)
    later = instructor.from_openai(AsyncOpenAI(base_url=url, api_key="any"), mode=instructor.Mode.JSON_SCHEMA)
    return {
        "schema": whole.model_dump(), "tokens": completion.usage.completion_tokens,
        "partial": partial[-1].model_dump(), "pieces": len(partial),
        "async": asyncio.run(later.create(response_model=City, **asked)).model_dump(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps({"text": text(sys.argv[1])}))

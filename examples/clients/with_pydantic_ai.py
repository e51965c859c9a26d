"""pydantic-ai: an answer as an object. `pip install "pydantic-ai-slim[openai]"`; `python with_pydantic_ai.py MODEL [URL]`."""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model, url = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8000/v1"])[0]


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


served = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="any"))
agent = Agent(served, output_type=NativeOutput(City), model_settings={"temperature": 0.0, "max_tokens": 100})
print(agent.run_sync("Where is the Eiffel tower?").output)

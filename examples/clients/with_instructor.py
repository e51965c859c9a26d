"""instructor: an answer as a pydantic model. `pip install instructor`, then `python with_instructor.py MODEL [URL]`."""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

model, url = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8000/v1"])[0]


class City(BaseModel):
    """A city and its country."""

    name: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


client = instructor.from_openai(OpenAI(base_url=url, api_key="any"), mode=instructor.Mode.JSON_SCHEMA)
question = [{"role": "user", "content": "Where is the Eiffel tower?"}]
print(client.create(model=model, messages=question, response_model=City, temperature=0.0, max_tokens=100))

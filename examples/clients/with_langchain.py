"""LangChain: a tool that is called, a text as it comes. `pip install langchain-openai`; `python with_langchain.py MODEL`."""

import sys
from typing import Literal

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model, url = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8000/v1"])[0]


@tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"22 degrees in {city}"


chat = ChatOpenAI(model=model, base_url=url, api_key="any", temperature=0.0, max_tokens=100)
ask = ChatPromptTemplate.from_messages([("user", "What is the weather in {city}?")])
called = (ask | chat.bind_tools([weather], tool_choice="any", strict=True)).invoke({"city": "Paris"})
print(weather.invoke(called.tool_calls[0]).content)
for piece in chat.stream("What is the capital of France?"):
    print(piece.content, end="", flush=True)
print()

"""LlamaIndex: a chat. `pip install llama-index-llms-openai-like`; `python with_llama_index.py MODEL [URL]`."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

model, url = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8000/v1"])[0]
llm = OpenAILike(
    model=model, api_base=url, api_key="any", is_chat_model=True, is_function_calling_model=True, temperature=0.0,
    max_tokens=24, context_window=8192,
)  # fmt: skip

for piece in llm.stream_chat([ChatMessage(role="user", content="What is the capital of France?")]):
    print(piece.delta, end="", flush=True)
print()

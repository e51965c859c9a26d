"""LiteLLM: a chat, written out as it comes. `pip install litellm`, then `python with_litellm.py MODEL [URL]`."""

import sys

import litellm

model, url = sys.argv[1], (sys.argv[2:] or ["http://127.0.0.1:8000/v1"])[0]
served = {
    "model": f"openai/{model}",
    "api_base": url,
    "api_key": "any",
}  # a key of `omnibus keys add`, once there are some
question = [{"role": "user", "content": "What is the capital of France?"}]

for chunk in litellm.completion(messages=question, stream=True, temperature=0.0, max_tokens=24, **served):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

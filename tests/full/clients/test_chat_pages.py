"""The requests of Open WebUI and of LibreChat, as their sources make them, and of Java's client, byte by byte."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.raw_http import RawAnswer, chunked, exchange, form

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
EXAMPLES = Path(__file__).parents[3] / "examples" / "clients"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SHAPES = "a red circle left of a blue square"
SEEN = "red circle left blue square"
AIOHTTP = """
Content-Type: application/json
Authorization: Bearer any
X-OpenWebUI-User-Name: Ada%20Lovelace
X-OpenWebUI-User-Id: 3fa85f64-5717-4562-b3fc-2c963f66afa6
X-OpenWebUI-User-Email: ada@example.org
X-OpenWebUI-User-Role: user
X-OpenWebUI-Chat-Id: 9d2c7a1e-0a3b-4a0c-b1a5-6f1d2f0e8c11
Accept: */*
Accept-Encoding: gzip, deflate, br
User-Agent: Python/3.11 aiohttp/3.12.15
"""
"""Headers of Open WebUI, which forwards its user where it is set to."""
STAINLESS = """
Accept: application/json
Content-Type: application/json
User-Agent: OpenAI/JS 5.12.2
X-Stainless-Retry-Count: 0
X-Stainless-Lang: js
X-Stainless-Package-Version: 5.12.2
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: node
X-Stainless-Runtime-Version: v20.19.4
Authorization: Bearer any
Accept-Language: *
Sec-Fetch-Mode: cors
Accept-Encoding: br, gzip, deflate
Connection: keep-alive
"""
"""Headers of OpenAI's package for Node, by which LibreChat asks."""
JAVA = """
Connection: Upgrade, HTTP2-Settings
HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA
Upgrade: h2c
User-Agent: Java-http-client/17.0.15
Authorization: Bearer any
Content-Type: application/json
"""
"""Headers of java.net.http, by which Spring AI asks, too."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def post(url: str, path: str, headers: str, body: Any) -> RawAnswer:
    answer = exchange(url, "POST", path, headers, json.dumps(body).encode())
    assert answer.status == 200, answer.body
    return answer


def test_open_webui_lists_models(url: str) -> None:
    found = exchange(url, "GET", "/models", AIOHTTP).json()
    assert {one["id"] for one in found["data"]} == {"smollm2", "minilm", "omni-tiny"}
    assert {one["owned_by"] for one in found["data"]} == {"omnibus"}


def test_open_webui_chats_and_names_its_chat(url: str) -> None:
    asked = {"model": "smollm2", "temperature": 0, "max_tokens": 24, "messages": QUESTION}
    streamed = post(
        url, "/chat/completions", AIOHTTP, {"stream": True, **asked, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert "Paris" in streamed.text()
    assert streamed.events()[-1]["usage"]["completion_tokens"] > 0
    title = {"model": "smollm2", "messages": QUESTION, "stream": False, "max_completion_tokens": 1000}
    named = post(url, "/chat/completions", AIOHTTP, {**title, "temperature": 0}).json()
    assert named["choices"][0]["message"]["content"]


def test_open_webui_sends_turns_with_tools_back(url: str) -> None:
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    turns = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
    ]
    body = {
        "stream": True,
        "model": "smollm2",
        "messages": turns,
        "tools": [WEATHER],
        "max_tokens": 24,
        "temperature": 0,
    }
    assert post(url, "/chat/completions", AIOHTTP, body).events()


def test_open_webui_is_shown_why_a_picture_cannot_be_seen(url: str) -> None:
    picture = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture_of(url)).decode()}"},
    }
    turn = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}
    body = json.dumps({"stream": True, "model": "smollm2", "messages": [turn]}).encode()
    refused = exchange(url, "POST", "/chat/completions", AIOHTTP, body)
    assert refused.status == 400
    assert refused.headers["content-type"] == "application/json"
    assert refused.json()["error"]["param"] == "messages[0].content[1].image_url"


def picture_of(url: str) -> bytes:
    body = {"model": "omni-tiny", "prompt": SHAPES, "n": 1, "size": "64x64", "response_format": "b64_json"}
    return base64.b64decode(post(url, "/images/generations", AIOHTTP, body).json()["data"][0]["b64_json"])


def test_open_webui_paints_speaks_and_embeds(url: str) -> None:
    assert picture_of(url).startswith(b"\x89PNG")
    spoken = post(url, "/audio/speech", AIOHTTP, {"input": SHAPES, "voice": "alloy", "model": "omni-tiny"})
    assert spoken.headers["content-type"] == "audio/mpeg"
    assert len(spoken.body) > 1000
    vectors = post(url, "/embeddings", AIOHTTP, {"input": ["a cat", "a kitten"], "model": "minilm"}).json()["data"]
    assert [len(one["embedding"]) for one in vectors] == [384, 384]
    ranking = {"model": "minilm", "query": "a cat", "documents": ["a stone", "a kitten"], "top_n": 2}
    ranked = post(url, "/rerank", AIOHTTP, ranking).json()["results"]
    assert [one["index"] for one in ranked] == [1, 0]
    assert all(isinstance(one["relevance_score"], float) for one in ranked)


def test_open_webui_is_shown_why_no_stage_edits_or_hears(url: str) -> None:
    headers = "Authorization: Bearer any\nContent-Type: multipart/form-data; boundary=b2f1\nUser-Agent: python-requests/2.32.4\n"
    heard = exchange(
        url, "POST", "/audio/transcriptions", headers,
        form("b2f1", ("model", None, b"omni-tiny"), ("file", "7c1f.wav", b"RIFF")),
    )  # fmt: skip
    fields = {
        "model": b"omni-tiny",
        "prompt": b"make it blue",
        "n": b"1",
        "size": b"64x64",
        "response_format": b"b64_json",
    }
    parts = [(name, None, value) for name, value in fields.items()]
    edited = exchange(
        url, "POST", "/images/edits", headers, form("b2f1", *parts, ("image", "image.png", picture_of(url)))
    )
    for refused in (heard, edited):
        assert refused.status == 400, refused.body
        assert refused.json()["error"]["message"]


def test_librechat_lists_models_for_its_user(url: str) -> None:
    headers = "Accept: application/json, text/plain, */*\nAuthorization: Bearer any\nUser-Agent: axios/1.8.4\n"
    found = exchange(url, "GET", "/models?user=66f1a2b3c4d5e6f708192a3b", headers).json()["data"]
    assert {"smollm2", "omni-tiny"} <= {one["id"] for one in found}


def test_librechat_chats_and_names_its_conversation(url: str) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]
    body = {
        "model": "smollm2", "temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 24,
        "stream": True, "stream_options": {"include_usage": True}, "user": "66f1a2b3c4d5e6f708192a3b", "messages": parts,
    }  # fmt: skip
    assert "Paris" in post(url, "/chat/completions", STAINLESS, body).text()
    titled = {
        "type": "function",
        "function": {
            "name": "extract", "description": "A function available to call.",
            "parameters": {
                "type": "object", "properties": {"title": {"type": "string", "description": "A concise title"}},
                "required": ["title"], "additionalProperties": False, "$schema": "http://json-schema.org/draft-07/schema#",
            },
        },
    }  # fmt: skip
    structured = {
        "model": "smollm2", "temperature": 0.2, "max_tokens": 200, "stream": False, "user": "66f1a2b3c4d5e6f708192a3b",
        "messages": parts, "tools": [titled], "tool_choice": {"type": "function", "function": {"name": "extract"}},
        "parallel_tool_calls": False,
    }  # fmt: skip
    (choice,) = post(url, "/chat/completions", STAINLESS, structured).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "extract"


def test_librechat_paints_and_speaks(url: str) -> None:
    body = {
        "model": "omni-tiny", "prompt": SHAPES, "n": 1, "size": "auto", "quality": "auto", "background": "auto",
        "output_format": "png", "output_compression": 100, "user": "66f1a2b3c4d5e6f708192a3b",
    }  # fmt: skip
    painted = post(url, "/images/generations", STAINLESS, body).json()["data"]
    assert base64.b64decode(painted[0]["b64_json"]).startswith(b"\x89PNG")
    headers = "Content-Type: application/json\nAuthorization: Bearer any\nUser-Agent: axios/1.8.4\n"
    spoken = post(url, "/audio/speech", headers, {"input": SHAPES, "model": "omni-tiny", "voice": "alloy"})
    assert spoken.headers["content-type"] == "audio/mpeg"


@pytest.mark.parametrize("model", ["smollm2", "omni-tiny"])
def test_java_is_answered_when_it_offers_http_2(url: str, model: str) -> None:
    asked, said = (QUESTION, "Paris") if model == "smollm2" else ([{"role": "user", "content": SHAPES}], SEEN)
    body = {"model": model, "messages": asked, "temperature": 0, "max_tokens": 16}
    whole = exchange(url, "POST", "/chat/completions", JAVA, json.dumps(body).encode(), apart=True)
    assert said in whole.json()["choices"][0]["message"]["content"]
    streaming = chunked(json.dumps({**body, "stream": True}).encode())
    streamed = exchange(url, "POST", "/chat/completions", f"{JAVA}Transfer-Encoding: chunked\n", streaming, apart=True)
    assert said in streamed.text()


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here; its bytes are tested above")
def test_example_in_java(url: str) -> None:
    said = subprocess.run(
        ["java", EXAMPLES / "Ask.java", "smollm2", url], capture_output=True, text=True, timeout=120, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "data: [DONE]" in said.stdout


def test_files_of_chat_pages_name_what_is_served_here(url: str) -> None:
    models = {one["id"] for one in exchange(url, "GET", "/models", AIOHTTP).json()["data"]}
    (endpoint,) = yaml.safe_load((EXAMPLES / "librechat.yaml").read_text())["endpoints"]["custom"]
    lines = [line for line in (EXAMPLES / "open-webui.env").read_text().splitlines() if not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines)
    named = {*endpoint["models"]["default"], *(value for name, value in settings.items() if name.endswith("_MODEL"))}
    addresses = {endpoint["baseURL"], *(value for name, value in settings.items() if name.endswith("BASE_URL"))}
    assert named <= models
    assert addresses == {"http://127.0.0.1:8000/v1"}

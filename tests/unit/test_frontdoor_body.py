"""Bodies on their way to a route: how many values they may have, where they are read, when two ask for the same."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.frontdoor.app import create_app
from omnibus.frontdoor.bodies import Body
from omnibus.frontdoor.body_route import INLINE_BYTES, _fingerprint, check_size, off_loop, parse
from omnibus.frontdoor.chat_messages import MAX_MESSAGES, MAX_PARTS, InputAudio
from omnibus.frontdoor.endpoints.chat import ChatBody
from omnibus.frontdoor.endpoints.completions import CompletionBody
from omnibus.frontdoor.endpoints.images import ImageBody
from omnibus.frontdoor.endpoints.lora_adapters import LoadAdapterBody
from omnibus.frontdoor.endpoints.videos import VideoBody
from tests.support.front import FixedPipelines, nobody

pytestmark = pytest.mark.unit

TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b"[]," * 10 + b"[]]",
        b'{"a":' * 11 + b"1" + b"}" * 11,
        b"[" + b"1," * 21 + b"1]",
        b"[" + b'"x",' * 21 + b'"x"]',
        b'{"text":"\\\\", "many":[' + b"1," * 20 + b"1]}",
        b'["' + b'\\"' * 7 + b'",' + b"[]," * 10 + b"0]",
    ],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(raw: bytes) -> None:
    with pytest.raises(RequestTooLarge):
        check_size(raw, max_values=20, max_containers=10)


@pytest.mark.parametrize(
    "text",
    ["," * 50, "[{" * 50, '",' * 50, "\\" * 51 + ",{" * 50, '\\"' * 70 + "[," * 50, "x" * 200 + "\\,[" * 40],
)
def test_commas_and_brackets_of_texts_are_no_values(text: str) -> None:
    raw = json.dumps({"a": text, "b": [text, {"c": text}]}).encode()
    check_size(raw, max_values=20, max_containers=10)


@pytest.mark.parametrize("raw", [b'{"a": "' + b"," * 50, b'{"a": "\\', b"," * 5, b""])
def test_what_is_no_json_is_left_to_the_parser(raw: bytes) -> None:
    check_size(raw, max_values=20, max_containers=10)
    with pytest.raises(InvalidRequest):
        parse(raw, ChatBody)


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (ChatBody, {"messages": [TURN] * (MAX_MESSAGES + 1)}, "messages"),
        (ChatBody, {"messages": [{**TURN, "content": [{"type": "text", "text": "a"}] * (MAX_PARTS + 1)}]}, "messages[0].content"),
        (ChatBody, {"messages": [TURN], "stop": ["a"] * 1000}, "stop"),
        (ChatBody, {"messages": [TURN], "stop_token_ids": [1] * 1000}, "stop_token_ids"),
        (ChatBody, {"messages": [TURN], "logit_bias": {str(token): 1 for token in range(5000)}}, "logit_bias"),
        (ChatBody, {"messages": [TURN], "modalities": ["text"] * 100}, "modalities"),
        (ChatBody, {"messages": [TURN], "sampling_params": {str(stage): {} for stage in range(100)}}, "sampling_params"),
        (ChatBody, {"messages": [TURN], "sampling_params_list": [{}] * 100}, "sampling_params_list"),
        (CompletionBody, {"prompt": "a", "stop": ["a"] * 1000}, "stop"),
    ],
)  # fmt: skip
def test_lists_are_bounded_and_named(model: type[BaseModel], fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(json.dumps(fields).encode(), model)
    assert refused.value.param == param


def test_a_prompt_of_a_million_tokens_is_taken() -> None:
    prompt = list(range(1_000_000))
    assert parse(json.dumps({"prompt": prompt}).encode(), CompletionBody).prompt == prompt


@pytest.mark.parametrize("raw", [b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"messages": "\xff"}'])
def test_a_text_that_is_no_unicode_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        parse(raw, ChatBody)


def test_a_body_may_begin_with_a_byte_order_mark() -> None:
    assert parse(b'\xef\xbb\xbf{"prompt": "hi"}', CompletionBody).prompt == "hi"


async def test_work_leaves_the_loop_when_its_bytes_are_many() -> None:
    here = threading.get_ident()
    assert await off_loop(INLINE_BYTES, threading.get_ident) == here
    assert await off_loop(INLINE_BYTES + 1, threading.get_ident) != here


def test_two_bodies_ask_for_the_same_when_only_order_nulls_and_timing_differ() -> None:
    first = _fingerprint("/a", b'{"prompt": "x", "output_format": "png", "priority": 3, "user": null}')
    assert first == _fingerprint("/a", b'{"output_format":"png","prompt":"x","affinity":"here"}')
    others = [
        _fingerprint("/b", b'{"prompt": "x", "output_format": "png"}'),
        _fingerprint("/a", b'{"prompt": "x", "output_format": "webp"}'),
        _fingerprint("/a", b'{"prompt": "x", "output_format": "png", "unknown": 1}'),
        _fingerprint("/a", b'{"prompt": "x"}'),
    ]
    assert len({first, *others}) == 5


def test_the_schema_says_how_errors_look_and_what_bodies_hold() -> None:
    schema = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True).openapi()  # type: ignore[arg-type]
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert operations
    for operation in operations:
        for status in ("4XX", "5XX"):
            content = operation["responses"][status]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert not {"HTTPValidationError", "ValidationError"} & schema["components"]["schemas"].keys()
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatBody"}
    answer = chat["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/ChatCompletion"}
    assert "text/event-stream" in chat["responses"]["200"]["content"]


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/images/edits", {"multipart/form-data"}),
        ("/v1/audio/transcriptions", {"multipart/form-data"}),
        ("/v1/videos", {"application/json", "multipart/form-data"}),
        ("/v1/completions", {"application/json"}),
    ],
)
def test_the_schema_says_which_bodies_are_forms(path: str, kinds: set[str]) -> None:
    app = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]
    assert app.openapi()["paths"][path]["post"]["requestBody"]["content"].keys() == kinds
    assert app.openapi() is app.openapi()


def test_the_schema_has_the_parameters_of_paths_and_the_types_of_files() -> None:
    app = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]
    paths = app.openapi()["paths"]
    (parameter,) = paths["/v1/requests/{request_id}/input"]["post"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("request_id", "path", True)
    content = paths["/v1/videos/{video_id}/content"]["get"]["responses"]
    assert content["200"]["content"].keys() == content["206"]["content"].keys() == {"video/mp4", "image/webp"}
    assert paths["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ImageBody, {"prompt": "x", "size": "big"}, "size: must be WIDTHxHEIGHT in pixels, such as 1024x768, or auto"),
        (ImageBody, {"prompt": "x", "size": "0x10"}, "size: must be WIDTHxHEIGHT in pixels, such as 1024x768, or auto"),
        (VideoBody, {"prompt": "x", "seconds": "long"}, "seconds: must be a number of seconds, such as 4 or 2.5"),
        (
            LoadAdapterBody,
            {"lora_name": "a b", "lora_path": "x"},
            "lora_name: must be a name without spaces and without ':'",
        ),
        (InputAudio, {"data": "aGk=", "format": "No!"}, "format: must be the name of a format, such as wav or mp3"),
    ],
)
def test_a_text_of_the_wrong_form_is_refused_in_words(kind: type[Body], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(json.dumps(fields).encode(), kind)
    assert refusal.value.message == message
    assert '"pattern"' in json.dumps(kind.model_json_schema())

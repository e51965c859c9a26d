"""Errors in OpenAI's shape, and the fields that they name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from omnibus.errors import (
    EngineError,
    InvalidRequest,
    OmnibusError,
    Overloaded,
    RequestConflict,
    Unauthorized,
    UnknownModel,
)
from omnibus.frontdoor.body_route import parse
from omnibus.frontdoor.endpoints.chat import ChatBody
from omnibus.frontdoor.error_answers import error_response, validation_error
from omnibus.frontdoor.idempotency_keys import keyed_rid
from omnibus.frontdoor.realtime.client_events import ClientEvent
from omnibus.pipeline.spec import NAME_PATTERN

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (UnknownModel("no such model", param="model"), 404, "invalid_request_error", "false"),
        (RequestConflict(), 409, "invalid_request_error", "false"),
        (Unauthorized(), 401, "authentication_error", "false"),
        (Overloaded(retry_after=1.2), 429, "rate_limit_error", "true"),
        (EngineError("it broke"), 500, "server_error", "true"),
    ],
)
def test_an_error_has_its_status_type_and_advice(error: OmnibusError, status: int, kind: str, retry: str) -> None:
    response = error_response(error)
    detail = json.loads(response.body)["error"]
    assert (response.status_code, detail["type"], detail["code"]) == (status, kind, error.code)
    assert (detail["message"], detail["param"]) == (error.message, error.param)
    assert response.headers["x-should-retry"] == retry


def test_retry_after_is_whole_seconds_when_overloaded() -> None:
    assert error_response(Overloaded(retry_after=1.2)).headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"model": "m"}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": []}, "temperature"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_a_wrong_field_is_named_by_its_path(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate(body)
    problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in refused.value.errors()]
    assert validation_error(problems, body).param == param


def test_keyed_ids_are_names_that_differ_by_caller_and_key() -> None:
    callers = [
        ("t", "p", "1"),
        ("t", "p", "2"),
        ("t1", "p", ""),
        ("t", "p1", ""),
        ("t", "q", "1"),
    ]
    rids = {keyed_rid(*caller) for caller in callers}
    assert len(rids) == len(callers)
    assert all(NAME_PATTERN.fullmatch(rid) for rid in rids)
    assert keyed_rid(*callers[0]) in rids


@pytest.mark.parametrize(
    ("event", "message"),
    [({"type": "session.close"}, "type: Input should be 'session.update', "), ({"no": 1}, "type: Field required")],
)
def test_the_kind_of_an_event_is_named_when_there_is_none_such(event: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(json.dumps(event).encode(), ClientEvent)
    assert refused.value.message.startswith(message)
    assert refused.value.param == "type"


def test_the_kind_of_a_part_is_named_by_its_path_when_there_is_none_such() -> None:
    part = {"type": "picture"}
    body = {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [part]}}
    with pytest.raises(InvalidRequest) as refused:
        parse(json.dumps(body).encode(), ClientEvent)
    assert refused.value.param == "item.content[0].type"

"""Every error as OpenAI's clients expect it: `{"error": {message, type, param, code}}`, with its status and headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from typing_extensions import TypedDict

from omnibus.errors import InvalidRequest, OmnibusError, RequestError, RequestTooLarge
from omnibus.frontdoor.bodies import to_json

JSON_TYPE = "application/json"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    """The shape of every error."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be served as it is, or not now (429)."},
    "5XX": {
        "model": ErrorAnswer,
        "description": "The server, the broker or an engine failed; `x-should-retry` says more.",
    },
}
"""Errors as OpenAPI documents them for every route."""


class NoSuchRoute(RequestError, code="not_found", http_status=404):
    """There is nothing at this address; /docs lists the routes."""


class MethodNotAllowed(RequestError, code="method_not_allowed", http_status=405):
    """This address does not take this method."""


class RequestTimeout(RequestError, code="request_timeout", http_status=408, retryable=True):
    """The request did not arrive in time; send its headers and its body without long pauses."""


class TooManyConnections(OmnibusError, code="too_many_connections", http_status=503, retryable=True):
    """Too many connections are open; try again later."""

    retry_after = 1.0


class ServerFault(OmnibusError):
    """The server failed; the request id finds the reason in its log."""


class ShuttingDown(OmnibusError, code="shutting_down", http_status=503, retryable=True):
    """The server stops; the request goes on, and can be read by its id at another one."""


def install(app: FastAPI) -> None:
    """Let the application answer every error in this shape."""
    app.add_exception_handler(OmnibusError, _on_omnibus_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def error_detail(error: OmnibusError) -> ErrorDetail:
    """An error in OpenAI's shape; its type is the coarse kind, as OpenAI names them."""
    coarse = "invalid_request_error" if error.http_status < 500 else "server_error"
    kind = _TYPES.get(error.http_status, coarse)
    return ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code)


def error_json(error: OmnibusError) -> bytes:
    """The body of an error."""
    return to_json(ErrorAnswer(error=error_detail(error)))


def error_response(error: OmnibusError) -> Response:
    """A whole response. `x-should-retry` tells OpenAI's clients what our tree says, not what the status suggests."""
    headers = {"x-should-retry": "true" if error.retryable else "false", **getattr(error, "headers", {})}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_json(error), status_code=error.http_status, headers=headers, media_type=JSON_TYPE)


async def refuse(error: OmnibusError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or the handshake of a WebSocket, with an error."""
    response = error_response(error)
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await response(scope, receive, send)


def validation_error(problems: Sequence[Any], body: object) -> InvalidRequest:
    """Make the error of a query or a body from pydantic's list: the problem that lies deepest, its field written as a path.

    Where a field may have several shapes, pydantic reports what is wrong with each; the one that fits best gets furthest.
    """
    for problem in problems:
        if problem["loc"][0] == "query":
            name = str(problem["loc"][1])
            return InvalidRequest(f"{name}: {problem['msg']}", param=name)
    located = [(field_path(problem["loc"], body, lacks=problem["type"] == "missing"), problem) for problem in problems]
    path, problem = max(located, key=lambda pair: pair[0].count(".") + pair[0].count("["))
    if problem["type"] == "json_invalid":
        return InvalidRequest("the body is not valid JSON")
    if not isinstance(body, dict):
        return InvalidRequest("the body must be a JSON object, of Content-Type application/json")
    message = problem["msg"]
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = problem["ctx"]["discriminator"].strip("'")
        tag = "type" if tag.endswith("()") else tag  # a function finds it, as it may be left out
        path = f"{path}.{tag}" if path else tag
        expected = problem["ctx"].get("expected_tags")
        message = f"Input should be {expected}" if expected else "Field required"
    return InvalidRequest(f"{path}: {message}" if path else message, param=path or None)


def field_path(location: Sequence[str | int], body: object, *, lacks: bool) -> str:
    """`("body", "messages", 0, "content")` as `messages[0].content`, without the labels of union members in it.

    `lacks`: its end is a field that is not there.
    """
    path = ""
    where, at_tag = body, False
    for index, step in enumerate(location[1:], start=1):
        # A part's type is a step of its own, and may be the name of one of its fields, too.
        at_tag = not at_tag and isinstance(where, dict) and where.get("type") == step and index < len(location) - 1
        if at_tag:
            continue
        if isinstance(step, int) and isinstance(where, list) and step < len(where):
            where = where[step]
            path += f"[{step}]"
        elif isinstance(where, dict) and (step in where or (lacks and index == len(location) - 1)):
            where = where.get(step)
            path += f".{step}" if path else str(step)
    return path


async def _on_omnibus_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, OmnibusError)
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(validation_error(error.errors(), error.body))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(_from_http(error))
    if error.status_code == 405:
        response.headers["Allow"] = ", ".join(sorted(_methods_at(request)))
    return response


def _methods_at(request: Request) -> set[str]:
    """The methods of an address: each route knows its own alone, and an address of its own may look like another's parameter."""
    routes = [
        one for one in request.app.routes if isinstance(one, Route) and one.matches(request.scope)[0] is not Match.NONE
    ]
    nearest = min((len(one.param_convertors) for one in routes), default=0)
    methods = set[str]().union(*(one.methods or set() for one in routes if len(one.param_convertors) == nearest))
    return methods | {"HEAD"} if "GET" in methods else methods


def _from_http(error: HTTPException) -> OmnibusError:
    match error.status_code:
        case 404:
            return NoSuchRoute()
        case 405:
            return MethodNotAllowed()
        case 413:
            return RequestTooLarge(error.detail)
        case status if status < 500:
            return InvalidRequest(error.detail)
        case _:
            return ServerFault(error.detail)

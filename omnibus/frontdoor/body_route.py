"""Routes with a body, JSON or a form: read, bounded, checked and mapped without holding up the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

import pydantic_core
from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from omnibus.errors import InvalidRequest, OmnibusError, RequestCancelled, RequestTooLarge
from omnibus.frontdoor import forms
from omnibus.frontdoor.error_answers import error_response, validation_error
from omnibus.frontdoor.forms import is_form
from omnibus.frontdoor.headers import sent_header

if TYPE_CHECKING:
    from fastapi._compat import ModelField

INLINE_BYTES: Final = 32 * 1024
"""Work on more than this leaves the event loop."""
MAX_VALUES: Final = 1 << 20
"""JSON values in a body: numbers of a prompt's token ids are the most that anybody has."""
MAX_CONTAINERS: Final = 1 << 16
"""JSON objects and arrays in a body."""
_NOT_SHAPING = frozenset({"priority", "affinity", "wait"})
"""Fields that decide when and where a request runs, not what its answer is."""
_BOM = b"\xef\xbb\xbf"
P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class BodyRoute(APIRoute):
    """A route `(body, context)` or `(body, http, context)` whose body is a pydantic model; FastAPI documents its schema."""

    @property
    def takes_body(self) -> bool:
        """Whether it is one: others in the same router are FastAPI's."""
        return self.body_field is not None

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        return self.answer if self.takes_body else super().get_route_handler()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, without FastAPI's layers for what it does not have: dependencies and files to close."""
        try:
            response = await self.answer(HttpRequest(scope, receive, send))
        except OmnibusError as error:
            response = error_response(error)
        await response(scope, receive, send)

    @property
    def body_model(self) -> type[BaseModel]:
        """The model of the body."""
        return self._body[0]

    @cached_property
    def _body(self) -> tuple[type[BaseModel], bool]:
        """The model of the body, and whether one must be sent."""
        field = cast("ModelField", self.body_field).field_info
        return cast("type[BaseModel]", field.annotation), field.is_required()

    async def answer(self, http: HttpRequest) -> Response:
        """The answer of the endpoint; raises the OmnibusError that it answers with."""
        state = http.scope["state"]
        raw = state["body"] = await _read(http)
        model, is_required = self._body
        content_type = sent_header(http.scope, "content-type") or ""
        if not raw and not is_required:
            raw = b"{}"
        elif getattr(model, "takes_forms", False) and is_form(content_type):
            body, state["body"] = await off_loop(len(raw), parse_form, raw, content_type, model)
            return await self._answered(http, body)
        elif not _is_json(content_type):
            form = "a form, of Content-Type multipart/form-data, or " if getattr(model, "takes_forms", False) else ""
            raise InvalidRequest(f"the body must be {form}a JSON object, of Content-Type application/json")
        return await self._answered(http, await off_loop(len(raw), parse, raw, model))

    async def _answered(self, http: HttpRequest, body: BaseModel) -> Response:
        state = http.scope["state"]
        field_of = state["field_of"] = getattr(body, "field_of", str)
        more = {"http": http} if self.dependant.request_param_name is not None else {}
        try:
            response: Response = await self.endpoint(body=body, context=http.app.state.context, **more)
        except OmnibusError as error:
            _rename(error, field_of)
            raise
        return response


class ShortWay:
    """Sends a POST to the address of a body's route there at once, past the router, which tries one route after the other."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if isinstance(route, BodyRoute) and route.takes_body}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        await route.serve(scope, receive, send)


@contextmanager
def naming_fields(field_of: Callable[[str], str]) -> Iterator[None]:
    """Name the field of an error as the caller does."""
    try:
        yield
    except OmnibusError as error:
        _rename(error, field_of)
        raise


def _rename(error: OmnibusError, field_of: Callable[[str], str]) -> None:
    error.param = error.param and field_of(error.param)


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """The result of `work`, done in a thread when the bytes that it is about are many."""
    if size <= INLINE_BYTES:
        return work(*args, **options)
    return await asyncio.to_thread(work, *args, **options)


def parse(raw: bytes, model: type[M]) -> M:
    """The body as the model; raises InvalidRequest naming the field, and RequestTooLarge for too many values."""
    raw = raw.removeprefix(_BOM)
    check_size(raw)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error, _json(raw)) from error


def parse_form(raw: bytes, content_type: str, model: type[M]) -> tuple[M, bytes]:
    """A form as the model, and as JSON to compare it by; numbers, and objects as JSON, are texts in it. Raises as `parse`."""
    fields = forms.form_fields(raw, content_type)
    given = dict(fields)
    for name, value in fields.items():
        if _is_object(name, value, model):
            check_size(encoded := value.encode())
            given[name] = _json(encoded) or value
    try:
        return model.model_validate(given, strict=False), forms.as_json(fields)
    except ValidationError as error:
        raise _refusal(error, given) from error


def _is_object(name: str, value: object, model: type[BaseModel]) -> bool:
    """Whether a text of a form is JSON: an object, or a list of them, for a field that is no text itself."""
    field = model.model_fields.get(name)
    return field is not None and isinstance(value, str) and value[:1] in ("{", "[") and "dict" in str(field.annotation)


def _refusal(error: ValidationError, body: object) -> InvalidRequest:
    problems = error.errors(include_url=False, include_input=False)
    return validation_error([{**one, "loc": ("body", *one["loc"])} for one in problems], body)


async def fingerprint(http: HttpRequest) -> str:
    """A digest of all that a request asks for; the order of fields, and nulls, change nothing."""
    raw = http.state.body
    return await off_loop(len(raw), _fingerprint, http.url.path, raw)


def _fingerprint(path: str, raw: bytes) -> str:
    fields = pydantic_core.from_json(raw.removeprefix(_BOM))
    shaping = {name: value for name, value in fields.items() if value is not None and name not in _NOT_SHAPING}
    return hashlib.sha256(json.dumps([path, shaping], sort_keys=True).encode()).hexdigest()


def check_size(raw: bytes, max_values: int = MAX_VALUES, max_containers: int = MAX_CONTAINERS) -> None:
    """Raises RequestTooLarge for a body of more JSON values than any request has.

    Invariant: it comes before the parser, which holds the interpreter until it has made them all, in whatever thread.
    """
    values, containers = _commas(raw, 0, len(raw)), _brackets(raw, 0, len(raw))
    if values <= max_values and containers <= max_containers:
        return
    values = containers = start = 0  # most may stand in texts: count again without those
    while start < len(raw):
        quote = raw.find(b'"', start)
        end = quote if quote >= 0 else len(raw)
        values += _commas(raw, start, end)
        containers += _brackets(raw, start, end)
        if values > max_values or containers > max_containers:
            raise RequestTooLarge(f"the body has more than {max_values} values, or {max_containers} objects and lists")
        start = _end_of_string(raw, end + 1)


def _commas(raw: bytes, start: int, end: int) -> int:
    return raw.count(b",", start, end)


def _brackets(raw: bytes, start: int, end: int) -> int:
    return raw.count(b"{", start, end) + raw.count(b"[", start, end)


def _end_of_string(raw: bytes, start: int) -> int:
    """The place behind the quote that ends the string whose text begins at `start`."""
    while (quote := raw.find(b'"', start)) >= 0:
        text = raw[start:quote]
        if (len(text) - len(text.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        start = quote + 1  # that one was escaped
    return len(raw)


def _json(raw: bytes) -> object:
    try:
        return pydantic_core.from_json(raw)
    except ValueError:
        return None


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


async def _read(http: HttpRequest) -> bytes:
    """The body; raises RequestTooLarge at once where it says its length, else as soon as it has passed the bound."""
    limit: int = http.app.state.context.options.max_body_bytes
    declared = sent_header(http.scope, "content-length") or ""
    body, size = bytearray(), int(declared) if declared.isdecimal() else 0
    while size <= limit and (message := await http.receive())["type"] != "http.disconnect":
        body += message.get("body", b"")
        size = max(size, len(body))
        if size <= limit and not message.get("more_body", False):
            return bytes(body)
    if size > limit:
        raise RequestTooLarge(f"the body is larger than {limit} bytes")
    raise RequestCancelled("the caller went away before its request was complete")

"""The OpenAPI document: what FastAPI makes, completed by what it cannot see of routes that read their bodies themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.routing import BaseRoute

from omnibus.frontdoor.body_route import BodyRoute

EVENTS = "text/event-stream"
_JSON, _FORM = "application/json", "multipart/form-data"


def answers_with(*media_types: str, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The `responses` by which a route documents types that its answers may have beside its model's JSON."""
    # The schema of a stream would be that of each of its events, which are of many shapes.
    content = {one: {} if one == EVENTS else {"schema": {"type": "string"}} for one in media_types}
    return {status: {"content": content, "description": "The answer, or a part of it."}}


def files_of(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """The same of a file that may be read in parts."""
    return {**answers_with(*media_types), **answers_with(*media_types, status=206)}


def events_of(**models: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with a stream alone: by the name of an event the schema of its data.

    OpenAPI 3.1 has no word for the parts of a stream: the schema is that of one event, with its name and its data, which is a
    text, as OpenAPI 3.2 has it.
    """
    shapes = [
        {
            "type": "object",
            "properties": {"event": {"const": name}, "data": _text_of(model)},
            "required": ["event", "data"],
        }
        for name, model in models.items()
    ]
    described = (
        "Server-sent events without an end; the schema is that of one of them: its name, and its data, which is JSON."
    )
    return {200: {"content": {EVENTS: {"schema": {"oneOf": shapes}}}, "description": described}}


def _text_of(model: str) -> dict[str, Any]:
    """A text that is JSON of a model."""
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{model}"},
    }


def complete_document(app: FastAPI) -> None:
    """Let the application's document have forms and the parameters of paths."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(made(), app.routes)
        return made()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _complete(document: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    for route in routes:
        if isinstance(route, BodyRoute) and route.takes_body:
            operation = document["paths"][route.path_format]["post"]
            _add_path(operation, route)
            if getattr(route.body_model, "takes_forms", False):
                _add_form(operation["requestBody"]["content"], route.body_model)


def _add_path(operation: dict[str, Any], route: BodyRoute) -> None:
    names = route.param_convertors
    if names:
        schema = {"type": "string"}
        operation["parameters"] = [{"name": one, "in": "path", "required": True, "schema": schema} for one in names]


def _add_form(content: dict[str, Any], model: type[BaseModel]) -> None:
    """A body that may come as a form; one without its files, which JSON cannot bring, comes as no JSON."""
    content[_FORM] = content[_JSON]
    schema = model.model_json_schema()
    if any("'binary'" in str(schema["properties"][name]) for name in schema.get("required", ())):
        del content[_JSON]

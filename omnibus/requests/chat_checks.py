"""Checks of a chat's options and of what constrains its text, before anything is queued. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from omnibus.errors import InvalidRequest
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import Request

CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
"""Kinds of constraints in `structured_outputs`, of which a request has one; names are vLLM's."""
STRUCTURED = "structured_outputs"
MOST_CHECKED = 4096
"""Bytes of a schema that is checked here, each of which takes 13 µs of the event loop; a longer one is the engine's to refuse."""
TOOLS_CHECKED = 16
"""Tools whose schemas are checked here, for the same reason."""


def check_options(request: Request, stages: Sequence[StageSpec], engines: str) -> None:
    """Raises InvalidRequest naming the option that no stage could serve."""
    asked = request.chat
    if asked is None:
        return
    first = next((name for name in asked.__struct_fields__ if getattr(asked, name) is not None), "chat")
    if request.messages is None:
        raise InvalidRequest(f"{first} is an option of a chat: give messages", param=first)
    if request.resumable:
        raise InvalidRequest(f"{first} has no effect on an open input", param=first)
    if not any(engine_kind(stage.engine).has_chat_template for stage in stages):
        raise InvalidRequest(f"no stage has a chat template that reads {first}: the engines are {engines}", param=first)
    if asked.tool_choice not in (None, "none", "auto") and not asked.tools:
        raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice")
    if asked.tools and asked.tool_choice != "none":
        _check_parser(stages)
    for number, tool in enumerate(asked.tools or ()):
        _check_tool(tool, f"tools[{number}]", checks_schema=number < TOOLS_CHECKED)


def check_structured(given: Any) -> None:
    """Raises InvalidRequest for a constraint that is none; what only an engine's compiler finds is left to it."""
    if given is None:
        return
    kinds = [name for name in CONSTRAINTS if isinstance(given, Mapping) and given.get(name) is not None]
    if len(kinds) != 1:
        raise _wrong(f"give exactly one of {', '.join(CONSTRAINTS)}")
    value = given[kinds[0]]
    match kinds[0]:
        case "json":
            _check_schema(value)
        case "json_object" if value is not True:
            raise _wrong("json_object is true, or left out")
        case "choice" if not (isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value)):
            raise _wrong("choice is a list of texts")
        case "regex" | "grammar" | "structural_tag" if not (isinstance(value, str) and value.strip()):
            raise _wrong(f"{kinds[0]} is a text")


def _check_parser(stages: Sequence[StageSpec]) -> None:
    if not any(engine_kind(stage.engine).takes_tools(stage.engine_args) for stage in stages):
        raise InvalidRequest(
            "the pipeline finds no calls in what its model writes: name a tool_call_parser in the stage's engine_args, one of "
            "vLLM's that suits the model, such as hermes",
            param="tools",
        )


def _check_tool(tool: Mapping[str, Any], where: str, *, checks_schema: bool) -> None:
    if tool.get("type", "function") != "function":
        raise InvalidRequest(f"{where}.type is function", param=f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"{where}.function is an object with the name of the function", param=f"{where}.function")
    name, parameters = function.get("name"), function.get("parameters")
    if not (isinstance(name, str) and name):
        raise InvalidRequest(f"{where}.function.name is the name of the function", param=f"{where}.function.name")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(
            f"{where}.function.parameters is a JSON schema, an object", param=f"{where}.function.parameters"
        )
    if (
        checks_schema and parameters and function.get("strict") is True
    ):  # others are shown to the model, and bind nothing
        _check_schema(parameters, f"{where}.function.parameters")


def _check_schema(value: Any, where: str = STRUCTURED) -> None:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        encoded = msgspec.json.encode(schema)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"no JSON schema: {error}", where) from error
    if not isinstance(schema, Mapping):
        raise _wrong("a JSON schema is an object", where)
    if len(encoded) <= MOST_CHECKED and (problem := _problem_of(encoded)) is not None:
        raise _wrong(f"no JSON schema: {problem}", where)


@lru_cache(maxsize=256)
def _problem_of(schema: bytes) -> str | None:
    """Kept, as callers send the same schemas again and again."""
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415 a quarter of a second of import

    try:
        Draft202012Validator.check_schema(msgspec.json.decode(schema))
    except SchemaError as error:
        return f"{error.message} at {error.json_path}"
    except (ValueError, RecursionError) as error:
        return str(error)
    return None


def _wrong(message: str, where: str = STRUCTURED) -> InvalidRequest:
    return InvalidRequest(message, param=where)

"""The wire as an AsyncAPI 3.0 document, its schemas made from the types, and the page that lists its channels."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import msgspec
import yaml

from tools.site.channels import CHANNELS, MSGPACK, PARAMETERS, Channel, Plain

_REFERENCE = "#/components/schemas/{name}"
_ABOUT = """What travels between the processes of Omnibus, and to producers in other languages, over NATS.

Bodies are MessagePack maps unless a message says otherwise; the schemas here describe them as JSON would have them: bytes are
MessagePack's bin, not base64. Maps with integer keys have them as text here. Fields that have their default may be left out.
Made from the types in `omnibus/wire/` when the site is built. `reference/wire.md` explains the part that is for producers."""
_PAGE = """# Messages

Every subject of the [wire](wire.md) and the messages on it, made from the types in `omnibus/wire/` when the site is built. Names
in braces are parameters. The same as an AsyncAPI 3.0 document, with every field: [asyncapi.yaml](asyncapi.yaml).

| subject | what it is | messages | from | to | kept in |
|---|---|---|---|---|---|
"""


def document() -> dict[str, Any]:
    """The document: a channel a subject, two operations a channel, a schema a type."""
    used = {one.__name__ if isinstance(one, type) else one.name: one for one in _messages()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Omnibus", "version": version("omnibus"), "description": _ABOUT,
                 "license": {"name": "Apache-2.0"}},
        "defaultContentType": MSGPACK,
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {name: operation for channel in CHANNELS for name, operation in _operations(channel)},
        "components": {
            "messages": {name: _message(name, kind) for name, kind in used.items()},
            "schemas": _schemas([kind for kind in used.values() if not isinstance(kind, Plain)]),
        },
    }  # fmt: skip


def document_text() -> str:
    """The document as YAML."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


def channels_page() -> str:
    """The page in Markdown, a line a channel."""
    return _PAGE + "".join(
        f"| `{channel.address}` | {channel.summary} | {_names(channel.messages)}{_replied(channel)} "
        f"| {', '.join(channel.senders)} | {', '.join(channel.receivers)} | {channel.kept or 'nothing: core NATS'} |\n"
        for channel in CHANNELS
    )


def _names(kinds: tuple[Any, ...]) -> str:
    return ", ".join(f"`{_name(kind)}`" for kind in kinds)


def _replied(channel: Channel) -> str:
    return f"; answers: {_names(channel.replies)}" if channel.replies else ""


def _name(kind: Any) -> str:
    return kind.name if isinstance(kind, Plain) else kind.__name__


def _messages() -> Iterator[Any]:
    for channel in CHANNELS:
        yield from channel.messages
        yield from channel.replies


def _channel(channel: Channel) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", channel.address)
    kept = (
        f"Kept in the {channel.kept}."
        if channel.kept
        else "Core NATS: a message may be lost, and nothing depends on it."
    )
    about = f"{channel.summary}. {kept}"
    if channel.headers:
        about += " Headers: " + "; ".join(f"`{name}`, {meaning}" for name, meaning in channel.headers.items()) + "."
    made: dict[str, Any] = {
        "address": channel.address, "description": about,
        "messages": {_name(kind): {"$ref": f"#/components/messages/{_name(kind)}"} for kind in channel.messages},
    }  # fmt: skip
    if names:
        made["parameters"] = {name: {"description": PARAMETERS[name]} for name in dict.fromkeys(names)}
    return made


def _operations(channel: Channel) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each role's part: the document describes all of them, not one application."""
    for action, roles in (("send", channel.senders), ("receive", channel.receivers)):
        for role in roles:
            yield (
                f"{role}.{action}.{channel.name}",
                {
                    "action": action,
                    "channel": {"$ref": f"#/channels/{channel.name}"},
                    "summary": f"{role} {action}s: {channel.summary}",
                    "messages": [
                        {"$ref": f"#/channels/{channel.name}/messages/{_name(one)}"} for one in channel.messages
                    ],
                },
            )


def _message(name: str, kind: Any) -> dict[str, Any]:
    if isinstance(kind, Plain):
        payload = {"type": "object"} if kind.content_type.endswith("json") else {"type": "string"}
        return {"name": name, "summary": kind.summary, "contentType": kind.content_type, "payload": payload}
    return {"name": name, "contentType": MSGPACK, "payload": {"$ref": _REFERENCE.format(name=name)}}


def _schemas(kinds: list[type]) -> dict[str, Any]:
    _, found = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    types = {kind.__name__: kind for kind in _reachable(kinds)}
    return {name: _described(_draft_7(schema), types.get(name)) for name, schema in sorted(found.items())}


def _draft_7(schema: Any) -> Any:
    """A schema of msgspec's as AsyncAPI has it: tuples are `items`, and a discriminator is a name alone."""
    if isinstance(schema, list):
        return [_draft_7(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    changed = {name: _draft_7(value) for name, value in schema.items()}
    if "prefixItems" in changed:
        rest = changed.pop("items", None)
        changed |= {"items": changed.pop("prefixItems"), **({"additionalItems": rest} if rest is not None else {})}
    if isinstance(discriminator := changed.get("discriminator"), Mapping) and "propertyName" in discriminator:
        changed["discriminator"] = discriminator["propertyName"]
    return changed


def _described(schema: dict[str, Any], kind: type | None) -> dict[str, Any]:
    """A schema whose properties say what the strings beneath the fields of its type say."""
    properties = schema.get("properties", {})
    for name, about in (field_notes(kind) if kind is not None else {}).items():
        if name in properties:
            place = properties[name]  # nothing counts beside a reference in this draft
            properties[name] = {**({"allOf": [place]} if "$ref" in place else place), "description": about}
    return schema


def field_notes(kind: type) -> dict[str, str]:
    """The strings beneath the fields of a type, and of those it inherits from, on one line each."""
    notes: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if not parent.__module__.startswith("omnibus."):
            continue
        (declared,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(declared, ast.ClassDef)
        for before, after in zip(declared.body, declared.body[1:], strict=False):
            match before, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    notes[name] = " ".join(text.split())
    return notes


def _reachable(kinds: list[type]) -> Iterator[type]:
    """The types themselves, and those inside them."""
    waiting: list[Any] = [msgspec.inspect.type_info(kind) for kind in kinds]
    known: set[type] = set()
    while waiting:
        info = waiting.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls not in known:
                known.add(info.cls)
                yield info.cls
                waiting += [one.type for one in info.fields]
            continue
        inside = (getattr(info, name, None) for name in ("types", "item_types", "item_type", "key_type", "value_type"))
        for one in inside:
            waiting += one if isinstance(one, tuple) else [one] if one is not None else []

"""Bodies that are forms, multipart/form-data: how clients send files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import create_form_parser

from omnibus.errors import InvalidRequest, RequestTooLarge

MOST_PARTS = 256
_MIXED = 1 << 40
"""Bytes of a file above which the parser would write it to disk: the body is in memory, and bounded, already."""
_INNER = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]")
Fields = Mapping[str, Any]


def is_form(content_type: str) -> bool:
    """Whether a body of this type is one."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def form_fields(raw: bytes, content_type: str) -> Fields:
    """The texts, and files as bytes, by name; a list for a name that comes twice or ends with [], an object of the names `a[b]`.

    Work for a thread.

    Raises InvalidRequest for what is no form, RequestTooLarge for more than MOST_PARTS parts.
    """
    found: dict[str, list[str | bytes]] = {}

    def add(name: bytes | None, value: str | bytes) -> None:
        found.setdefault((name or b"").decode("utf-8", "replace"), []).append(value)
        if sum(map(len, found.values())) > MOST_PARTS:
            raise RequestTooLarge(f"a form may have {MOST_PARTS} parts")

    def on_field(field: Any) -> None:
        add(field.field_name, (field.value or b"").decode("utf-8", "replace"))

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    try:
        parser = create_form_parser(
            {"Content-Type": content_type.encode()}, on_field, on_file, config={"MAX_MEMORY_FILE_SIZE": _MIXED}
        )
        parser.write(raw)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise InvalidRequest(f"the form cannot be read: {error}") from error
    return _nested(
        {
            name.removesuffix("[]"): values if name.endswith("[]") or len(values) > 1 else values[0]
            for name, values in found.items()
        }
    )


def _nested(flat: Fields) -> Fields:
    made: dict[str, Any] = {}
    for name, value in flat.items():
        parts = _INNER.fullmatch(name)
        outer, key = (made, name) if parts is None else (made.setdefault(parts[1], {}), parts[2])
        if not isinstance(outer, dict) or key in outer:
            raise InvalidRequest(f"{name}: the form has this field in two ways", param=name)
        outer[key] = value
    return made


def as_json(fields: Fields) -> bytes:
    """The fields as JSON, a digest in place of each file: forms that ask for the same have the same."""
    return json.dumps(fields, default=lambda data: hashlib.sha256(data).hexdigest(), sort_keys=True).encode()

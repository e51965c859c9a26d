"""Bodies that are forms, multipart/form-data: how clients send files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import create_form_parser

from omnibus.errors import InvalidRequest, RequestTooLarge

MOST_PARTS = 256
_MIXED = 1 << 40
"""Bytes of a file above which the parser would write it to disk: the body is in memory, and bounded, already."""
Fields = Mapping[str, Any]


def is_form(content_type: str) -> bool:
    """Whether a body of this type is one."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def form_fields(raw: bytes, content_type: str) -> Fields:
    """The texts, and files as bytes, by name; a list for a name that comes twice or ends with []. Work for a thread.

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
    return {
        name.removesuffix("[]"): values if name.endswith("[]") or len(values) > 1 else values[0]
        for name, values in found.items()
    }


def as_json(fields: Fields) -> bytes:
    """The fields as JSON, a digest in place of each file: forms that ask for the same have the same."""
    return json.dumps(fields, default=lambda data: hashlib.sha256(data).hexdigest(), sort_keys=True).encode()

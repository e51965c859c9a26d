"""Bodies that are forms."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.frontdoor.body_route import parse_form
from omnibus.frontdoor.endpoints.image_edits import EditBody
from omnibus.frontdoor.endpoints.videos import VideoBody

pytestmark = pytest.mark.unit


def form(data: dict[str, Any], files: Any = ()) -> tuple[bytes, str]:
    """A form as a client writes it."""
    sent = httpx.Request("POST", "http://x", data=data, files=files or {"": (None, "")})
    return sent.read(), sent.headers["content-type"]


def test_texts_of_a_form_become_the_values_of_the_fields() -> None:
    data = {
        "prompt": "[a] {cat}",
        "n": "2",
        "stream": "true",
        "strength": "0.5",
        "sampling_params": '{"s": {"eta": 1}}',
    }
    body, _ = parse_form(*form(data, [("image[]", b"one"), ("image[]", b"two"), ("mask", b"three")]), EditBody)

    assert (body.prompt, body.n, body.stream, body.strength) == ("[a] {cat}", 2, True, 0.5)
    assert body.sampling_params == {"s": {"eta": 1}}
    assert (body.images, body.mask) == ([b"one", b"two"], b"three")


def test_refused_when_an_object_in_a_form_has_more_values_than_any_request() -> None:
    many = '{"s": {"sigmas": [' + "1," * (2 << 20) + "1]}}"
    with pytest.raises(RequestTooLarge):
        parse_form(*form({"prompt": "a", "sampling_params": many}, {"image": ("a.png", b"one")}), EditBody)


def test_forms_are_the_same_when_they_ask_for_the_same() -> None:
    first, again = (parse_form(*form({"prompt": "a"}, {"image": ("a.png", b"one")}), EditBody)[1] for _ in range(2))
    other = parse_form(*form({"prompt": "a"}, {"image": ("a.png", b"two")}), EditBody)[1]

    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"prompt": "a"}, {"mask": b"x"}, "image"),
        ({"prompt": "a", "image": "no file"}, (), "image"),
        ({"prompt": "a"}, {"image": b""}, "image"),
        ({"prompt": "a", "n": "many"}, {"image": b"x"}, "n"),
        ({"prompt": "a", "depth": "1"}, {"image": b"x"}, "depth"),
        ({"prompt": "a", "sampling_params": "{"}, {"image": b"x"}, "sampling_params"),
    ],
)
def test_refused_naming_the_field_when_it_is_wrong(data: dict[str, str], files: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_form(*form(data, files), EditBody)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"--x\r\nnothing", "multipart/form-data; boundary=x"),
        (b"abc", "multipart/form-data; boundary=x"),
    ],
)
def test_refused_when_it_is_no_form(raw: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_form(raw, content_type, VideoBody)


def test_too_large_when_it_has_too_many_parts() -> None:
    with pytest.raises(RequestTooLarge, match="256 parts"):
        parse_form(*form({f"f{i}": "x" for i in range(257)}), VideoBody)

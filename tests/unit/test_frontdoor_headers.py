"""Headers of a request, as the front door looks them up."""

from __future__ import annotations

import pytest

from omnibus.frontdoor.headers import sent_header

pytestmark = pytest.mark.unit


def test_first_header_counts_when_one_is_sent_twice() -> None:
    scope = {"headers": [(b"accept", b"*/*"), (b"x-request-id", b"first"), (b"x-request-id", b"second")]}
    assert sent_header(scope, "x-request-id") == "first"
    assert sent_header(scope, "accept") == "*/*"
    assert sent_header(scope, "traceparent") is None


def test_headers_are_the_requests_own_when_another_was_looked_at_before() -> None:
    one, other = ({"headers": [(b"x-request-id", value)]} for value in (b"one", b"other"))
    assert [sent_header(scope, "x-request-id") for scope in (one, other, one)] == ["one", "other", "one"]

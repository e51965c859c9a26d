"""The part of a file that a caller asks for."""

from __future__ import annotations

import pytest

from omnibus.frontdoor.byte_range import RangeNotSatisfiable, requested_range

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=90-", 90, 99),
        ("bytes=-7", 93, 99),
        ("bytes=-700", 0, 99),
        ("bytes=99-100000", 99, 99),
        ("bytes = 1 - 2", 1, 2),
    ],
)
def test_range_is_within_the_file_when_it_is_asked_for(header: str, first: int, last: int) -> None:
    found = requested_range(header, 100)
    assert found is not None
    assert (found.first, found.last, found.nbytes) == (first, last, last - first + 1)
    assert str(found) == f"bytes {first}-{last}/100"


@pytest.mark.parametrize(
    "header", [None, "", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=0x1-2"]
)
def test_whole_file_is_meant_when_the_header_names_no_single_range(header: str | None) -> None:
    assert requested_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=100-120", 100), ("bytes=0-", 0), ("bytes=-0", 5)]
)
def test_range_is_refused_when_it_begins_behind_the_end(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        requested_range(header, size)

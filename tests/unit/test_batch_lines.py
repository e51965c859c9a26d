"""Lines of batches: which are refused and why, what of a file is a line, and what counts of an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from omnibus.batches.batch_lines import (
    MOST_LINES,
    InputCheck,
    Tally,
    error_line,
    file_id,
    line_rid,
    numbered_lines,
    response_line,
)
from omnibus.batches.batch_record import MOST_FAULTS
from omnibus.wire.names import is_name

pytestmark = pytest.mark.unit
ENDPOINT = "/v1/chat/completions"
BATCH = "batch_" + "0123456789abcdef" * 2


def line(custom_id: object = "one", **changes: object) -> bytes:
    """A request; None leaves a field out."""
    fields = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"model": "m"}, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def checked(*lines: bytes) -> InputCheck:
    check = InputCheck(ENDPOINT, 1000)
    for number, raw in enumerate(lines, 1):
        check.add(number, raw)
    check.finish()
    return check


def test_a_file_has_no_fault_when_every_line_is_a_request() -> None:
    check = checked(line("a"), line("b", unknown=1), line("c" * 512))
    assert (check.faults, check.total, check.model) == ([], 3, "m")
    assert checked(line("a"), line("b", body={"model": "other"})).model is None


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b'{"custom_id": 5, "\xff": 1}', "invalid_json_line", None),
        (line(None), "missing_required_parameter", None),
        (line(body=None), "missing_required_parameter", None),
        (line(7), "invalid_request", None),
        (line(""), "invalid_custom_id", "custom_id"),
        (line("x" * 513), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "invalid_url", "url"),
        (line(body=[1]), "invalid_request", None),
        (line(body="text"), "invalid_request", None),
        (line(body={"stream": True}), "invalid_request", "body.stream"),
        (line(body={"x": "y" * 1000}), "line_too_long", None),
    ],
)
def test_a_line_is_named_when_it_is_at_fault(raw: bytes, code: str, param: str | None) -> None:
    (fault,) = checked(line("fine"), raw).faults
    assert (fault.code, fault.line, fault.param) == (code, 2, param)


def test_a_line_is_named_when_it_is_no_request_and_too_deep_to_be_read() -> None:
    check = InputCheck(ENDPOINT, 100_000)
    check.add(1, b'{"custom_id": 5, "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    assert [(fault.code, fault.line) for fault in check.faults] == [("invalid_json_line", 1)]


def test_the_second_of_two_lines_is_named_when_both_have_one_id() -> None:
    (fault,) = checked(line("a"), line("b"), line("a")).faults
    assert (fault.code, fault.line, fault.message) == ("duplicate_custom_id", 3, "line 1 has this id, too")


def test_a_file_is_refused_when_it_has_no_lines_or_too_many() -> None:
    assert [fault.code for fault in checked().faults] == ["empty_file"]
    check = InputCheck(ENDPOINT, 1000)
    for number in range(1, MOST_LINES + 2):
        assert not check.is_over
        check.add(number, line(str(number)))
    assert check.is_over
    assert [(fault.code, fault.line) for fault in check.faults] == [("too_many_lines", None)]


def test_no_further_line_is_read_when_enough_are_at_fault() -> None:
    check = InputCheck(ENDPOINT, 1000)
    for number in range(1, 2 * MOST_FAULTS):
        check.add(number, b"{")
    assert check.is_over
    assert len(check.faults) == MOST_FAULTS


async def _pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_lines_keep_their_numbers_when_some_are_empty_or_too_long(size: int) -> None:
    data = b"one\n\n  \r\ntwo\r\n" + b"x" * 50 + b"\nthree"
    found = [one async for one in numbered_lines(_pieces(data, size), 10)]
    assert [(number, raw.strip()) for number, raw in found] == [(1, b"one"), (4, b"two"), (5, b"x" * 11), (6, b"three")]
    assert [one async for one in numbered_lines(_pieces(b"\n \n", size), 10)] == []


def test_an_answer_counts_once_when_it_was_appended_twice_or_in_part() -> None:
    body = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}).encode()
    good = response_line(BATCH, 1, "a", status=200, rid="r", body=body)
    odd = response_line(BATCH, 2, "b", status=200, rid="r", body=b'{"usage": {"prompt_tokens": null}}')
    refused = response_line(BATCH, 3, "c", status=400, rid="r", body=b'{"error": {}}')
    left = error_line(BATCH, 4, "d", code="batch_expired", message="too late")
    tally = Tally()
    parts = [good[:at] for at in range(0, len(good) - 2, 7)]
    assert [tally.add(raw) for raw in parts] == [None] * len(parts)
    assert [tally.add(raw) for raw in (good, good, odd, refused, left)] == [True, None, True, False, False]
    assert tally.done == {1, 2, 3, 4}
    counted = tally.progress
    assert (counted.completed, counted.failed, counted.input_tokens, counted.output_tokens) == (2, 2, 3, 2)
    assert all(raw.endswith(b"\n") and raw.count(b"\n") == 1 for raw in (good, odd, refused, left))


def test_an_answer_has_its_body_as_the_endpoint_gave_it() -> None:
    body = b'{"a":1.0,"b":"\\u00e4"}'
    raw = response_line(BATCH, 7, "seven", status=200, rid="rid", body=body)
    assert body in raw
    assert json.loads(raw) == {
        "id": f"batch_req_{BATCH.removeprefix('batch_')}_7",
        "custom_id": "seven",
        "response": {"status_code": 200, "request_id": "rid", "body": {"a": 1.0, "b": "ä"}},
        "error": None,
    }


def test_ids_are_the_same_when_another_runner_makes_them() -> None:
    assert line_rid(BATCH, 12, 0) == f"{'0123456789abcdef' * 2}-12"
    assert len({line_rid(BATCH, number, attempt) for number in range(1, 30) for attempt in range(3)}) == 87
    assert is_name(line_rid(BATCH, MOST_LINES, 2))
    output, errors = file_id(BATCH, "output"), file_id(BATCH, "error")
    assert output != errors
    assert output == file_id(BATCH, "output")
    assert len(output) == len("file-") + 32

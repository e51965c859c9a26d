"""The lines of a batch: those that its owner sent, and their answers, a line of JSON each. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from omnibus.batches.batch_record import MOST_FAULTS, PREFIX, BatchProgress, LineFault
from omnibus.files.file_record import PREFIX as FILE_PREFIX

MOST_LINES = 50_000
LONGEST_CUSTOM_ID = 512
"""Characters."""
REQUEST_PREFIX = "batch_req_"
_OK = range(200, 300)
_TIME = 12
"""Digits of an id that are the time of its making."""


class InputLine(msgspec.Struct, frozen=True):
    """One request of a batch."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Asked(msgspec.Struct, frozen=True):
    """The fields of a body that decide whether a batch can have it."""

    model: Any = None
    stream: Any = None


class _Usage(msgspec.Struct, frozen=True):
    """Tokens, by both names that OpenAI's answers have for them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Body(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"{}")


class _Answered(msgspec.Struct, frozen=True):
    """The parts of an answer that are counted."""

    id: str
    response: _Response | None = None


_decode_line = msgspec.json.Decoder(InputLine).decode
_decode_asked = msgspec.json.Decoder(_Asked).decode
_decode_answered = msgspec.json.Decoder(_Answered).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_REQUIRED = ("custom_id", "method", "url", "body")


async def numbered_lines(pieces: AsyncIterable[bytes], longest: int) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1; of a line of more than `longest` bytes its beginning.

    Never more than one line and one piece are in memory.
    """
    waiting, number, is_too_long = bytearray(), 1, False
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for end in whole:
            waiting += end
            if waiting.strip():
                yield number, bytes(waiting[: longest + 1])
            waiting.clear()
            number, is_too_long = number + 1, False
        if not is_too_long:
            waiting += rest
            is_too_long = len(waiting) > longest
    if waiting.strip():
        yield number, bytes(waiting[: longest + 1])


def read_line(raw: bytes) -> InputLine:
    """A line that was checked before; raises msgspec.DecodeError."""
    return _decode_line(raw)


def model_of(line: InputLine) -> str | None:
    """The model that a line names."""
    model = _decode_asked(line.body).model
    return model if isinstance(model, str) else None


@dataclass(slots=True)
class InputCheck:
    """Checks a file line by line. A batch runs where there is no fault in any."""

    endpoint: str
    longest: int
    """Bytes of a line."""
    total: int = 0
    faults: list[LineFault] = field(default_factory=list)
    _ids: dict[int, int] = field(default_factory=dict)
    """Lines, by the hash of their ids: of 50,000 ids the hashes are a small part."""
    _models: set[str | None] = field(default_factory=set)

    @property
    def model(self) -> str | None:
        """The model that every line names."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    @property
    def is_over(self) -> bool:
        """Whether no further line can change anything."""
        return len(self.faults) >= MOST_FAULTS or self.total > MOST_LINES

    def add(self, number: int, raw: bytes) -> None:
        """Check one line."""
        self.total += 1
        if self.total > MOST_LINES:
            self._fault("too_many_lines", f"a batch has at most {MOST_LINES} lines", None)
        elif len(raw) > self.longest:
            self._fault("line_too_long", f"a line has at most {self.longest} bytes", number)
        else:
            self._check(number, raw)

    def finish(self) -> None:
        """Every line was added."""
        if not self.total:
            self._fault("empty_file", "the file has no lines", None)

    def _check(self, number: int, raw: bytes) -> None:
        try:
            line = _decode_line(raw)
            asked = _decode_asked(line.body)
        except msgspec.ValidationError as error:
            self._fault(*_misfit(raw, error), number)
        except _NO_JSON:
            self._fault("invalid_json_line", "the line is not valid JSON", number)
        else:
            self._check_fields(number, line, asked)

    def _check_fields(self, number: int, line: InputLine, asked: _Asked) -> None:
        self._models.add(asked.model if isinstance(asked.model, str) else None)
        first = self._ids.setdefault(hash(line.custom_id), number)
        if not 0 < len(line.custom_id) <= LONGEST_CUSTOM_ID:
            self._fault("invalid_custom_id", f"an id has 1 to {LONGEST_CUSTOM_ID} characters", number, "custom_id")
        elif first != number:
            self._fault("duplicate_custom_id", f"line {first} has this id, too", number, "custom_id")
        if line.method != "POST":
            self._fault("invalid_method", "the method must be POST", number, "method")
        if line.url != self.endpoint:
            self._fault("invalid_url", f"the url must be the batch's endpoint, {self.endpoint}", number, "url")
        if asked.stream:
            self._fault("invalid_request", "a line is answered whole: leave stream out", number, "body.stream")

    def _fault(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(LineFault(code=code, message=message, line=line, param=param))


def _misfit(raw: bytes, error: msgspec.ValidationError) -> tuple[str, str]:
    """Code and message of a line that is JSON, and not a request's."""
    try:
        given: Any = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except _NO_JSON:
        return "invalid_json_line", "the line is not a JSON object"
    missing = [name for name in _REQUIRED if name not in given]
    if missing:
        return "missing_required_parameter", f"the line has no {', '.join(missing)}"
    return "invalid_request", str(error)


def file_id(batch_id: str, kind: str) -> str:
    """The id of the file that a batch makes of its answers of one kind, whichever runner makes it."""
    digits = batch_id.removeprefix(PREFIX)
    return (
        f"{FILE_PREFIX}{digits[:_TIME]}{hashlib.sha256(f'{kind}.{digits}'.encode()).hexdigest()[: len(digits) - _TIME]}"
    )


def request_id(batch_id: str, number: int) -> str:
    """The id of a line's answer."""
    return f"{REQUEST_PREFIX}{batch_id.removeprefix(PREFIX)}_{number}"


def line_rid(batch_id: str, number: int, attempt: int) -> str:
    """The id of the request that a line becomes: of an attempt that is made again, by anybody, it is the same request."""
    return f"{batch_id.removeprefix(PREFIX)}-{number}" + (f"-{attempt}" if attempt else "")


def response_line(batch_id: str, number: int, custom_id: str, *, status: int, rid: str, body: bytes) -> bytes:
    """An answer as its endpoint gave it, `body` being JSON."""
    response = {"status_code": status, "request_id": rid, "body": msgspec.Raw(body)}
    return _line(batch_id, number, custom_id, response, None)


def error_line(batch_id: str, number: int, custom_id: str, *, code: str, message: str) -> bytes:
    """A line that its endpoint did not answer."""
    return _line(batch_id, number, custom_id, None, {"code": code, "message": message})


def _line(
    batch_id: str, number: int, custom_id: str, response: dict[str, object] | None, error: dict[str, str] | None
) -> bytes:
    answer = {"id": request_id(batch_id, number), "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(answer) + b"\n"


@dataclass(slots=True)
class Tally:
    """The lines of a batch that have an answer, by number, and their sums."""

    done: set[int] = field(default_factory=set)
    progress: BatchProgress = field(default_factory=BatchProgress)

    def add(self, raw: bytes) -> bool | None:
        """Count an answer: whether the line succeeded; None for one that was cut off by a death, or was counted before."""
        try:
            answer = _decode_answered(raw)
            number = int(answer.id.rpartition("_")[2])
        except (msgspec.DecodeError, ValueError):
            return None
        if number in self.done:
            return None
        self.done.add(number)
        succeeded = answer.response is not None and answer.response.status_code in _OK
        usage = _usage(answer.response.body) if succeeded and answer.response is not None else _Usage()
        known = self.progress
        self.progress = BatchProgress(
            completed=known.completed + succeeded, failed=known.failed + (not succeeded),
            input_tokens=known.input_tokens + usage.prompt_tokens + usage.input_tokens,
            output_tokens=known.output_tokens + usage.completion_tokens + usage.output_tokens,
        )  # fmt: skip
        return succeeded


def _usage(body: msgspec.Raw) -> _Usage:
    try:
        return _decode_body(body).usage or _Usage()
    except msgspec.DecodeError:  # an endpoint that counts something else
        return _Usage()

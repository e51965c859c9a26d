"""Errors as they cross the broker, and their way back into exceptions."""

from __future__ import annotations

import re
from pathlib import PurePath

import msgspec

from omnibus import errors

MESSAGE_LIMIT = 4000
"""Characters of a failure's message; an engine's may be of any size, and the failure would not fit into its envelope."""
_FOLDERS = re.compile(r"(?<![\w.:/~-])(?:file://)?~?(?:/[^\s/:;,'\"`<>|()\[\]{}]+)+/(?=[^\s/'\"`])")
"""The folders of an absolute path, not those of an URL."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The reason why a request failed."""

    code: str
    message: str
    http_status: int = 500
    param: str | None = None
    stage_id: int | None = None
    replica: str | None = None
    attempts: int = 0
    """Deliveries that the failing stage used up; 0 when the failure was not about attempts."""

    def __post_init__(self) -> None:
        if len(self.message) > MESSAGE_LIMIT:
            msgspec.structs.force_setattr(self, "message", f"{self.message[: MESSAGE_LIMIT - 1]}…")

    @classmethod
    def of(cls, error: BaseException, *, stage_id: int | None = None, replica: str | None = None) -> Failure:
        """Describe an exception to callers; anything outside our tree becomes an `engine_error`."""
        if not isinstance(error, errors.OmnibusError):
            error = errors.EngineError(describe(error))
        return cls(
            code=error.code, message=without_folders(text_of(error)), http_status=error.http_status,
            param=getattr(error, "param", None), stage_id=stage_id, replica=replica,
        )  # fmt: skip

    def exception(self) -> errors.OmnibusError:
        """Make the exception of our tree with this code; OmnibusError for an unknown one."""
        error = _BY_CODE.get(self.code, errors.OmnibusError)(self.message)
        error.param = self.param
        return error


def describe(error: BaseException) -> str:
    """Class and first line of an exception, without folders of this machine: what callers may know of a stage's code."""
    first, _, _ = without_folders(text_of(error)).strip().partition("\n")
    return f"{type(error).__name__}: {first.rstrip()}" if first else type(error).__name__


def text_of(error: BaseException) -> str:
    """The text of an exception, as UTF-8 can hold it; its `__str__` may be anybody's code, and may fail."""
    try:
        text = str(error)[: 2 * MESSAGE_LIMIT]
    except BaseException as failure:  # noqa: BLE001 whatever it raises: the error itself must be reported
        return f"(its text cannot be made: {type(failure).__name__})"
    return text.encode("utf-8", "backslashreplace").decode()


def without_folders(text: str) -> str:
    """A text whose absolute paths have lost their folders: callers do not see where things are on this machine."""
    return _FOLDERS.sub("", text)


def last_frame(error: BaseException) -> str:
    """Where an exception was raised: file without its folder, line and function; empty when it was raised nowhere."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f"{PurePath(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}"


_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.OmnibusError)
}

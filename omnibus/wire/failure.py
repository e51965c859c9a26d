"""Errors as they cross the broker, and their way back into exceptions."""

from __future__ import annotations

import msgspec

from omnibus import errors

MESSAGE_LIMIT = 4000
"""Characters of a failure's message; an engine's may be of any size, and the failure would not fit into its envelope."""


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
        """Describe an exception; anything outside our tree becomes an `engine_error`."""
        if not isinstance(error, errors.OmnibusError):
            error = errors.EngineError(f"{type(error).__name__}: {error}")
        return cls(
            code=error.code, message=error.message, http_status=error.http_status, param=error.param,
            stage_id=stage_id, replica=replica,
        )  # fmt: skip

    def exception(self) -> errors.OmnibusError:
        """Make the exception of our tree with this code; OmnibusError for an unknown one."""
        error = _BY_CODE.get(self.code, errors.OmnibusError)(self.message)
        error.param = self.param
        return error


_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.OmnibusError)
}

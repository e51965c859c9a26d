"""Every error that Omnibus raises on purpose, one tree.

    OmnibusError
    ├── RequestError                 the caller's fault: 4xx, never retried
    │   ├── InvalidRequest           400  a field is missing, malformed or out of range
    │   ├── InvalidName              400  an id does not match [A-Za-z0-9_-]{1,64}
    │   ├── UnsupportedModality      400  the pipeline has no such output
    │   ├── EmptyPrompt              400
    │   ├── Unauthorized             401
    │   ├── Forbidden                403
    │   ├── UnknownModel             404
    │   ├── UnknownRequest           404
    │   ├── RequestConflict          409  the id is taken by a different request
    │   ├── RequestTooLarge          413
    │   └── EngineRejected           400  what only the engine can refuse
    │       └── ContextExceeded      400  the prompt does not fit into the model's context
    ├── Overloaded                   429  a bound is reached; retry later
    ├── RequestCancelled             499
    ├── DeadlineExceeded             504
    ├── EngineError                  500  an engine failed on a request
    │   ├── EngineDead               503  the engine's process is gone
    │   │   └── EngineStalled        503  the engine makes no progress
    │   └── AttemptsExhausted        500  every attempt that was allowed failed
    ├── StageTimeout                 504  an execution took longer than its stage allows
    ├── ReplicaMissing               503  a replica that was asked for is not there, or does not come back
    ├── PayloadLost                  500  a referenced payload cannot be read any more
    ├── Unreadable                   500  what is stored or queued is damaged, or of a newer version
    ├── BrokerError                  503  NATS
    │   ├── BrokerUnavailable             cannot be reached
    │   ├── BrokerDenied             403  the credentials do not allow it
    │   ├── BrokerRefused                 a stream refused, or an API request is wrong; carries the server's code
    │   ├── RevisionConflict              another writer was first
    │   └── ServerBinaryError             the embedded server is missing or too old
    └── ConfigError                  what an operator wrote cannot work
        ├── PipelineError                 a pipeline file, with file, line and field
        ├── CodeNotAllowed                a specification from the broker has code loaded that nobody allowed here
        ├── PortTaken
        ├── CheckpointMissing
        └── StageStartError               a replica did not start; names stage and replica

`code`, `http_status` and `retryable` are class data: nothing decides by message.
"""

from __future__ import annotations

from typing import ClassVar, Self


def printable(text: str) -> str:
    """A text that can be written as UTF-8: half a surrogate pair, which a caller's own words may hold, as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


class OmnibusError(Exception):
    """Something failed inside Omnibus."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(printable(message or (type(self).__doc__ or "").strip()))
        self.param = None if param is None else printable(param)

    @property
    def message(self) -> str:
        return str(self.args[0])


class RequestError(OmnibusError):
    """The request cannot be served as it is."""

    code = "invalid_request_error"
    http_status = 400


class InvalidRequest(RequestError, ValueError):
    """A field of the request is missing, malformed or out of range."""

    code = "invalid_request"


class InvalidName(RequestError):
    """An id must match [A-Za-z0-9_-]{1,64}."""

    code = "invalid_name"


class UnsupportedModality(RequestError):
    """The pipeline does not produce this modality."""

    code = "unsupported_modality"


class EmptyPrompt(RequestError):
    """The prompt is empty."""

    code = "empty_prompt"


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    code = "invalid_api_key"
    http_status = 401


class Forbidden(RequestError):
    """The API key does not have this right."""

    code = "permission_denied"
    http_status = 403


class UnknownModel(RequestError):
    """No such model is served here."""

    code = "model_not_found"
    http_status = 404


class UnknownRequest(RequestError):
    """No request with this id is known."""

    code = "request_not_found"
    http_status = 404


class RequestConflict(RequestError):
    """This request id is taken by a different request."""

    code = "request_conflict"
    http_status = 409


class RequestTooLarge(RequestError):
    """The request is larger than the pipeline accepts."""

    code = "request_too_large"
    http_status = 413


class EngineRejected(RequestError):
    """The engine refused the request."""

    code = "engine_rejected"


class ContextExceeded(EngineRejected):
    """The prompt is longer than the model's context."""

    code = "context_length_exceeded"


class Overloaded(OmnibusError):
    """A bound on open requests is reached; try again later."""

    code = "overloaded"
    http_status = 429
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestCancelled(OmnibusError):
    """The request was cancelled."""

    code = "cancelled"
    http_status = 499


class DeadlineExceeded(OmnibusError):
    """The request did not finish before its deadline."""

    code = "deadline_exceeded"
    http_status = 504


class EngineError(OmnibusError):
    """An engine failed on a request."""

    code = "engine_error"
    retryable = True


class EngineDead(EngineError):
    """The engine's process is gone."""

    code = "engine_dead"
    http_status = 503


class EngineStalled(EngineDead):
    """The engine makes no progress."""

    code = "engine_stalled"


class AttemptsExhausted(EngineError):
    """Every attempt that the request was allowed has failed."""

    code = "attempts_exhausted"
    retryable = False


class StageTimeout(OmnibusError):
    """An execution of a stage took longer than the stage allows."""

    code = "stage_timeout"
    http_status = 504


class ReplicaMissing(OmnibusError):
    """A replica is not there, does not answer, or has not come back."""

    code = "replica_missing"
    http_status = 503
    retryable = True


class PayloadLost(OmnibusError):
    """A payload that a message refers to cannot be read any more."""

    code = "payload_lost"
    retryable = True


class Unreadable(OmnibusError):
    """A stored record or a queued event cannot be read: it is damaged, or of a newer version."""

    code = "unreadable"

    def __init__(self, message: str | None = None, *, data: bytes = b"", revision: int = 0) -> None:
        super().__init__(message)
        self.data, self.revision = data, revision


class BrokerError(OmnibusError):
    """NATS refused or failed an operation."""

    code = "broker_error"
    http_status = 503
    retryable = True


class BrokerUnavailable(BrokerError):
    """NATS cannot be reached."""

    code = "broker_unavailable"


class BrokerDenied(BrokerError):
    """NATS does not allow this with the credentials in use."""

    code = "broker_denied"
    http_status = 403
    retryable = False

    @classmethod
    def of(cls, what: str, subject: str) -> Self:
        """The refusal of one call: to `publish` on a subject, or to `subscribe to` it."""
        return cls(
            f"the NATS credentials in use may not {what} {subject}: use those of the role that this is for, "
            "`omnibus doctor` names what is missing"
        )


class BrokerRefused(BrokerError):
    """NATS answered with an error; `err_code` and `status` are the server's."""

    code = "broker_refused"
    retryable = False

    def __init__(self, message: str | None = None, *, err_code: int = 0, status: int = 0) -> None:
        super().__init__(message)
        self.err_code, self.status = err_code, status

    @property
    def not_found(self) -> bool:
        """There is no such stream, consumer or message."""
        return self.status == 404


class RevisionConflict(BrokerError):
    """Another writer was first: the key's revision is not the expected one."""

    code = "revision_conflict"


class ServerBinaryError(BrokerError):
    """The embedded nats-server cannot run."""

    code = "server_binary"
    retryable = False


class ConfigError(OmnibusError):
    """The configuration cannot work as it is."""

    code = "config_error"


class PipelineError(ConfigError):
    """A pipeline specification is wrong; the message names file, line and field."""

    code = "pipeline_error"

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        where = ":".join(str(part) for part in (file, line) if part is not None)
        what = f"{field}: {message}" if field else message
        super().__init__(f"{where}: {what}" if where else what, param=field)
        self.file, self.line, self.field = file, line, field


class CodeNotAllowed(ConfigError):
    """A specification from the broker names code that this command may not load."""

    code = "code_not_allowed"


class PortTaken(ConfigError):
    """The port is in use."""

    code = "port_taken"


class CheckpointMissing(ConfigError):
    """The model's checkpoint cannot be found."""

    code = "checkpoint_missing"


class StageStartError(ConfigError):
    """A replica of a stage did not start."""

    code = "stage_start_error"

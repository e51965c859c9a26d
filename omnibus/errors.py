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
    │   │   └── InputClosed          409  a segment comes after the end of the input, or of its request
    │   ├── InputTimeout             408  an open input was silent for too long
    │   ├── RequestTooLarge          413
    │   └── EngineRejected           400  what only the engine can refuse
    │       └── ContextExceeded      400  the prompt does not fit into the model's context
    ├── Overloaded                   429  a bound is reached; retry later
    ├── RequestCancelled             499
    ├── DeadlineExceeded             504
    ├── EngineError                  500  an engine failed on a request
    │   ├── EngineDead               503  the engine's process is gone
    │   │   └── EngineStalled        503  the engine makes no progress
    │   ├── AttemptsExhausted        500  every attempt that was allowed failed
    │   └── FlowTooLarge             500  a stage made more chunks than a flow may hold
    ├── AttemptSuperseded            500  a later attempt has taken over
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

`code`, `http_status` and `retryable` are class data, written where a class is declared: nothing decides by message.
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
    ended_request = False
    """A request that was accepted has ended with it: sent again under its id, it has the same end."""

    def __init_subclass__(cls, *, code: str = "", http_status: int = 0, retryable: bool | None = None) -> None:
        """Set what a subclass has of its own; all else it has from its parent."""
        super().__init_subclass__()
        cls.code, cls.http_status = code or cls.code, http_status or cls.http_status
        cls.retryable = cls.retryable if retryable is None else retryable

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(printable(message or (type(self).__doc__ or "").strip()))
        self.param = None if param is None else printable(param)

    @property
    def message(self) -> str:
        return str(self.args[0])


class RequestError(OmnibusError, code="invalid_request_error", http_status=400):
    """The request cannot be served as it is."""


class InvalidRequest(RequestError, ValueError, code="invalid_request"):
    """A field of the request is missing, malformed or out of range."""


class InvalidName(RequestError, code="invalid_name"):
    """An id must match [A-Za-z0-9_-]{1,64}."""


class UnsupportedModality(RequestError, code="unsupported_modality"):
    """The pipeline does not produce this modality."""


class EmptyPrompt(RequestError, code="empty_prompt"):
    """The prompt is empty."""


class Unauthorized(RequestError, code="invalid_api_key", http_status=401):
    """The API key is missing or wrong."""


class Forbidden(RequestError, code="permission_denied", http_status=403):
    """The API key does not have this right."""


class UnknownModel(RequestError, code="model_not_found", http_status=404):
    """No such model is served here."""


class UnknownRequest(RequestError, code="request_not_found", http_status=404):
    """No request with this id is known."""


class RequestConflict(RequestError, code="request_conflict", http_status=409):
    """This request id is taken by a different request."""


class InputClosed(RequestConflict, code="input_closed"):
    """The input of this request is closed."""


class InputTimeout(RequestError, code="input_timeout", http_status=408):
    """The open input of the request was silent for too long."""


class RequestTooLarge(RequestError, code="request_too_large", http_status=413):
    """The request is larger than the pipeline accepts."""


class EngineRejected(RequestError, code="engine_rejected"):
    """The engine refused the request."""


class ContextExceeded(EngineRejected, code="context_length_exceeded"):
    """The prompt is longer than the model's context."""


class Overloaded(OmnibusError, code="overloaded", http_status=429, retryable=True):
    """A bound on open requests is reached; try again later."""

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestCancelled(OmnibusError, code="cancelled", http_status=499):
    """The request was cancelled."""


class DeadlineExceeded(OmnibusError, code="deadline_exceeded", http_status=504):
    """The request did not finish before its deadline."""


class EngineError(OmnibusError, code="engine_error", retryable=True):
    """An engine failed on a request."""


class EngineDead(EngineError, code="engine_dead", http_status=503):
    """The engine's process is gone."""


class EngineStalled(EngineDead, code="engine_stalled"):
    """The engine makes no progress."""


class AttemptsExhausted(EngineError, code="attempts_exhausted", retryable=False):
    """Every attempt that the request was allowed has failed."""


class FlowTooLarge(EngineError, code="flow_too_large", retryable=False):
    """A stage made more chunks than a flow may hold."""


class AttemptSuperseded(OmnibusError, code="attempt_superseded"):
    """A later attempt has taken over: this one publishes and acknowledges nothing more."""

    def __init__(self, message: str | None = None, *, is_same_task: bool = True) -> None:
        """`is_same_task`: the other attempt is at the same message of the queue, which is its to acknowledge."""
        super().__init__(message)
        self.is_same_task = is_same_task


class StageTimeout(OmnibusError, code="stage_timeout", http_status=504):
    """An execution of a stage took longer than the stage allows."""


class ReplicaMissing(OmnibusError, code="replica_missing", http_status=503, retryable=True):
    """A replica is not there, does not answer, or has not come back."""


class PayloadLost(OmnibusError, code="payload_lost", retryable=True):
    """A payload that a message refers to cannot be read any more."""


class FlowBroken(PayloadLost, code="flow_broken"):
    """Chunks of a flow are missing, come twice, or are gone; the stage that made them must run again."""


class Unreadable(OmnibusError, code="unreadable"):
    """A stored record or a queued event cannot be read: it is damaged, or of a newer version."""

    def __init__(self, message: str | None = None, *, data: bytes = b"", revision: int = 0) -> None:
        super().__init__(message)
        self.data, self.revision = data, revision


class BrokerError(OmnibusError, code="broker_error", http_status=503, retryable=True):
    """NATS refused or failed an operation."""


class BrokerUnavailable(BrokerError, code="broker_unavailable"):
    """NATS cannot be reached."""


class BrokerDenied(BrokerError, code="broker_denied", http_status=403, retryable=False):
    """NATS does not allow this with the credentials in use."""

    @classmethod
    def of(cls, what: str, subject: str) -> Self:
        """The refusal of one call: to `publish` on a subject, or to `subscribe to` it."""
        return cls(
            f"the NATS credentials in use may not {what} {subject}: use those of the role that this is for, "
            "`omnibus doctor` names what is missing"
        )


class BrokerRefused(BrokerError, code="broker_refused", retryable=False):
    """NATS answered with an error; `err_code` and `status` are the server's."""

    def __init__(self, message: str | None = None, *, err_code: int = 0, status: int = 0) -> None:
        super().__init__(message)
        self.err_code, self.status = err_code, status

    @property
    def not_found(self) -> bool:
        """There is no such stream, consumer or message."""
        return self.status == 404


class RevisionConflict(BrokerError, code="revision_conflict"):
    """Another writer was first: the key's revision is not the expected one."""


class ServerBinaryError(BrokerError, code="server_binary", retryable=False):
    """The embedded nats-server cannot run."""


class ConfigError(OmnibusError, code="config_error"):
    """The configuration cannot work as it is."""


class PipelineError(ConfigError, code="pipeline_error"):
    """A pipeline specification is wrong; the message names file, line and field."""

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        where = ":".join(str(part) for part in (file, line) if part is not None)
        what = f"{field}: {message}" if field else message
        super().__init__(f"{where}: {what}" if where else what, param=field)
        self.file, self.line, self.field = file, line, field


class CodeNotAllowed(ConfigError, code="code_not_allowed"):
    """A specification from the broker names code that this command may not load."""


class PortTaken(ConfigError, code="port_taken"):
    """The port is in use."""


class CheckpointMissing(ConfigError, code="checkpoint_missing"):
    """The model's checkpoint cannot be found."""


class StageStartError(ConfigError, code="stage_start_error"):
    """A replica of a stage did not start."""

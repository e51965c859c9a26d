"""The record of a batch, and how it goes on. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

import msgspec

from omnibus.errors import InvalidRequest, OmnibusError, RequestConflict
from omnibus.files.file_record import DEFAULT_LIFETIME

PREFIX = "batch_"
"""Beginning of every batch's id."""
KEPT = DEFAULT_LIFETIME
"""Seconds that a record is kept after the end of its completion window."""
LONGEST_WINDOW = 7 * 86_400
"""Seconds."""
MOST_FAULTS = 100
"""Faults of an input that a record names."""
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class UnknownBatch(OmnibusError, code="batch_not_found", http_status=404):
    """No batch of the caller has this id."""


class BatchEnded(RequestConflict, code="batch_ended"):
    """The batch has ended, or all its lines have: there is nothing to cancel."""


class BatchStatus(StrEnum):
    """The states of a batch."""

    VALIDATING = "validating"
    """Its input is read for the first time; no line runs."""
    FAILED = "failed"
    """Its input is at fault, or is gone."""
    IN_PROGRESS = "in_progress"
    """Its lines run."""
    FINALIZING = "finalizing"
    """Every line has its answer; the files are being written."""
    COMPLETED = "completed"
    EXPIRED = "expired"
    """Its completion window was over before its last line was."""
    CANCELLING = "cancelling"
    """Its owner wants no more of it; the files are written of what there is."""
    CANCELLED = "cancelled"


_S = BatchStatus
_NEXT: Mapping[BatchStatus, frozenset[BatchStatus]] = MappingProxyType(
    {
        _S.VALIDATING: frozenset({_S.FAILED, _S.IN_PROGRESS, _S.CANCELLING}),
        _S.IN_PROGRESS: frozenset({_S.FAILED, _S.FINALIZING, _S.CANCELLING, _S.EXPIRED}),
        _S.FINALIZING: frozenset({_S.FAILED, _S.COMPLETED}),
        _S.CANCELLING: frozenset({_S.FAILED, _S.CANCELLED}),
        **dict.fromkeys((_S.FAILED, _S.COMPLETED, _S.EXPIRED, _S.CANCELLED), frozenset()),
    }
)


class LineFault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fault of a batch's input."""

    code: str
    message: str
    line: int | None = None
    """From 1; None: of the file."""
    param: str | None = None


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Lines of a batch, counted, and the tokens of their answers."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch, as its owner sees it and as its runner left it. Written by compare-and-set only."""

    v: int = 1
    id: str
    tenant: str | None = None
    """Its owner; None: a caller without a key."""
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_lifetime: float = DEFAULT_LIFETIME
    """Seconds that its files are kept."""
    keep: float | None = None
    """Seconds that its owner's key keeps anything, which holds for what its lines store; None: no bound."""
    created: float
    """Seconds since the epoch, as all times here."""
    fingerprint: str = ""
    """Digest of what was asked for, where it came with an idempotency key."""
    expires: float
    status: BatchStatus = BatchStatus.VALIDATING
    times: dict[BatchStatus, float] = {}
    """When it came to each of its states."""
    runner: str = ""
    """A random token of the runner that drives it; of an earlier one nothing counts any more."""
    total: int = 0
    """Lines of its input."""
    model: str | None = None
    """The model that all lines name."""
    progress: BatchProgress = BatchProgress()
    faults: tuple[LineFault, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def ended(self) -> bool:
        return not _NEXT[self.status]

    def lifetime(self, now: float) -> float:
        """Seconds that the record is kept from `now` on."""
        return max(self.expires - now, 0.0) + KEPT

    def moved(self, status: BatchStatus, now: float, **changes: object) -> BatchRecord:
        """The record in another state; raises ValueError for one that does not follow."""
        if status not in _NEXT[self.status]:
            raise ValueError(f"a batch that is {self.status} does not become {status}")
        return msgspec.structs.replace(self, status=status, times={**self.times, status: now}, **changes)

    def cancelled(self, now: float) -> BatchRecord:
        """The record once its owner wants no more of it; raises BatchEnded."""
        if self.status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
            return self
        if BatchStatus.CANCELLING not in _NEXT[self.status]:
            raise BatchEnded(f"the batch is {self.status}: there is nothing to cancel")
        return self.moved(BatchStatus.CANCELLING, now)


def window_seconds(window: str) -> float:
    """Seconds of a completion window such as `24h`; raises InvalidRequest."""
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _UNITS[found[2]] if found is not None else 0
    if not 0 < seconds <= LONGEST_WINDOW:
        raise InvalidRequest(
            "completion_window is a time of at most 7 days, such as 24h, 90m or 7d", param="completion_window"
        )
    return float(seconds)


def unknown_batch(batch_id: str) -> UnknownBatch:
    """The error of an id that the caller has no batch of."""
    return UnknownBatch(f"there is no batch {batch_id[:80]!r}", param="batch_id")

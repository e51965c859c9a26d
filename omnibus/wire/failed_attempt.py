"""One attempt that failed, as the history of a request keeps it."""

from __future__ import annotations

import msgspec

MESSAGE_LIMIT = 500
"""Characters of an error that the history keeps."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A delivery of a task that failed."""

    stage_id: int
    run: int
    task_seq: int
    """Stream sequence of the task; with the delivery, it tells one attempt from the next."""
    delivery: int
    """Number of the delivery, from 1."""
    at: float
    """Time of the failure, seconds since the epoch."""
    replica: str | None = None
    code: str
    message: str
    where: str = ""
    """Where the stage's code raised: file without its folder, line and function."""
    detail: str = ""
    """The whole text of what it raised, for operators; empty where the message says it all."""

    def __post_init__(self) -> None:
        for field in ("message", "detail"):
            text: str = getattr(self, field)
            if len(text) > MESSAGE_LIMIT:
                msgspec.structs.force_setattr(self, field, f"{text[: MESSAGE_LIMIT - 1]}…")

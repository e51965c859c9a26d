"""Control messages, on core NATS: orders for workers and orchestrators, and the claims that workers announce."""

from __future__ import annotations

from typing import Any

import msgspec

from omnibus.wire.failure import Failure


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Drop these requests wherever they are, and what still arrives of them until their deadline."""

    rids: tuple[str, ...]
    until: float
    """Seconds since the epoch after which the ids may be forgotten."""
    run: int | None = None
    """The last run that is to be dropped: an operator may have opened a later one. None: every run."""


class AskClaims(msgspec.Struct, frozen=True, kw_only=True, tag="ask-claims"):
    """An orchestrator has started: every replica announces its claims again."""


class AskSentText(msgspec.Struct, frozen=True, kw_only=True, tag="ask-sent-text"):
    """Whoever runs this stage of the request says its text again, as Tokens on the message's reply subject.

    The last of them is shorter than SENT_TEXT_PAGE, and may be empty. Replicas that do not run it say nothing.
    """

    rid: str
    stage_id: int
    offset: int = 0
    """Characters that need not be repeated."""


SENT_TEXT_PAGE = 64 * 1024
"""Characters of one message that answers AskSentText, at least, but for the last."""


class Rpc(msgspec.Struct, frozen=True, kw_only=True, tag="rpc"):
    """Call a control method of the engine; the reply is an RpcReply on the message's reply subject."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


class RpcReply(msgspec.Struct, frozen=True, kw_only=True, tag="rpc-reply"):
    """What one replica answered."""

    replica: str
    value: bytes | None = None
    """Packed with `codec.pack`."""
    error: str | None = None
    """What went wrong, in words."""
    failure: Failure | None = None
    """The same, as the exception that it was."""


Control = Cancel | AskClaims | AskSentText | Rpc


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="claim"):
    """A replica says what it has in hand, so that others can hand it back the moment it dies."""

    stage_id: int
    replica: str
    instance: str = ""
    """Which life of it."""
    number: int = 0
    """Which of its announcements this is; its heartbeats say how many there were."""
    held: tuple[tuple[str, str], ...]
    """(request id, ack subject) of every delivery in hand."""

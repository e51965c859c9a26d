"""Control messages on core NATS: requests to workers and orchestrators, and the claims that workers announce."""

from __future__ import annotations

from typing import Any

import msgspec

from omnibus.wire.failure import Failure
from omnibus.wire.request import Request


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Drop these requests wherever they are, and what still arrives of them until their deadline."""

    rids: tuple[str, ...]
    until: float
    """Seconds since the epoch after which the ids may be forgotten."""
    run: int | None = None
    """The last run that is to be dropped: an operator may have opened a later one. None: every run."""


class Free(msgspec.Struct, frozen=True, kw_only=True, tag="free"):
    """The request is done: its payloads in shared memory go, those of this run and of earlier ones."""

    rid: str
    run: int


class AskClaims(msgspec.Struct, frozen=True, kw_only=True, tag="ask-claims"):
    """Announce all claims: to every replica when an orchestrator has started, to one whose announcement was missed."""


class AskSentText(msgspec.Struct, frozen=True, kw_only=True, tag="ask-sent-text"):
    """The replica that runs this stage of the request sends its text again, as Tokens on the message's reply subject.

    The last message has fewer characters than SENT_TEXT_PAGE, and may be empty. Replicas that do not run the stage send nothing.
    """

    rid: str
    stage_id: int
    offset: int = 0
    """Characters that need not be repeated."""


SENT_TEXT_PAGE = 16 * 1024
"""Characters of one message that answers AskSentText, those of fields counted; at least, but for the last."""


class AskTokens(msgspec.Struct, frozen=True, kw_only=True, tag="ask-tokens"):
    """The replica turns the request's prompt into tokens, as before it runs one; the reply is an RpcReply with PromptTokens."""

    request: Request
    """The fields of its prompt count, no others. A prompt of token ids is turned into its text."""
    special: bool | None = None
    """Whether special tokens, such as that of a beginning, are added; None: as in every prompt."""
    strings: bool = False
    """Whether each token's text is wanted, too."""


class PromptTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a prompt."""

    token_ids: tuple[int, ...]
    strings: tuple[str, ...] | None = None
    """The tokens as the vocabulary has them."""
    text: str | None = None
    """The text of a prompt that came as token ids."""
    context: int
    """Tokens that the model's context holds."""


class Rpc(msgspec.Struct, frozen=True, kw_only=True, tag="rpc"):
    """Call a control method of the engine; the reply is an RpcReply on the message's reply subject."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


class RpcReply(msgspec.Struct, frozen=True, kw_only=True, tag="rpc-reply"):
    """The answer of one replica to an Rpc, AskClaims or AskTokens."""

    replica: str
    value: bytes | None = None
    """Packed with `codec.pack`; PromptTokens where those were asked for."""
    error: str | None = None
    """The error in words."""
    failure: Failure | None = None
    """The same error, from which the caller's exception is made."""


Control = Cancel | Free | AskClaims | AskSentText | AskTokens | Rpc


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="claim"):
    """A replica announces all its deliveries, so that others can requeue them the moment it dies."""

    stage_id: int
    replica: str
    instance: str = ""
    """The process that serves the replica now; another after each restart."""
    number: int = 0
    """Number of this announcement; heartbeats carry how many the process has made."""
    held: tuple[tuple[str, str], ...]
    """(request id, ack subject) of every delivery that the replica holds."""

    @property
    def taken(self) -> tuple[tuple[str, str], ...]:
        """The same as of a ClaimChange: all that the announcement says is held."""
        return self.held


class ClaimChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="claim-change"):
    """A replica announces what has changed since its announcement before, which has the number before.

    Receivers that missed that one ask for the whole list (AskClaims). A delivery that is held for a few milliseconds only may
    never be announced.
    """

    stage_id: int
    replica: str
    instance: str
    number: int
    taken: tuple[tuple[str, str], ...] = ()
    """(request id, ack subject) of every new delivery."""
    released: tuple[str, ...] = ()
    """Ack subjects of deliveries that it holds no more; some may never have been announced."""


Announcement = Claim | ClaimChange

"""One job inside the vLLM engine: what it has made so far, and the parts of its input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnibus.wire.envelope import TokenUsage
from omnibus.workers.engines.loaded_engine import unless
from omnibus.workers.engines.protocol import EngineInput, Job, TextDelta
from omnibus.workers.engines.vllm.chat_format import Chat
from omnibus.workers.engines.vllm.generated_answer import Answer


@dataclass(slots=True)
class Run:
    """One job inside the engine, and what it has made so far."""

    id: str
    rid: str
    received: Sequence[int] = ()
    """Tokens that the client has of what is still to be made."""
    is_session: bool = False
    """Whether it makes a text for each segment of an open input."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by an abort."""
    ended: bool = False
    """Whether EngineCore has nothing of it any more."""
    prompt_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """For KV connectors: its `kv_transfer_params`."""
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed here."""
    chat: Chat | None = None
    """The chat that it answers, where that is more than plain text."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """Pieces of what the answer has beside its text."""
    answers: list[Answer] = field(default_factory=list)
    """One a text."""
    others: int = 0
    """Tokens of the choices behind the first."""
    segments: list[int] = field(default_factory=list)
    """Characters of the text before the end of each answer to a segment."""
    begun: int = 0
    """Tokens before the last text, which answers the last segment."""
    text_begun: int = 0
    """Pieces of text before it."""
    reason: str = "abort"
    """Why the last text ended."""
    handed_over: Mapping[str, Any] | None = None
    """The answer of the KV connectors to it: their `kv_transfer_params`."""

    @property
    def usage(self) -> TokenUsage:
        """Tokens so far."""
        reasoning = sum(answer.reasoning_tokens for answer in self.answers)
        return TokenUsage(self.prompt_tokens, len(self.token_ids) + self.others, self.cached_tokens, reasoning)

    @property
    def aborted(self) -> bool:
        return self.stopped.is_set()

    def begin(self) -> None:
        """Note that another text begins."""
        self.begun, self.text_begun = len(self.token_ids), len(self.texts)
        self.reason, self.handed_over = "abort", None

    def keep(self, delta: TextDelta) -> TextDelta:
        """Note what was made."""
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        for name, piece in delta.fields.items():
            self.fields.setdefault(name, []).append(piece)
        return delta


class RunAborted(Exception):
    """The run was aborted."""


async def parts_of(job: Job, run: Run) -> AsyncGenerator[EngineInput, None]:
    """The parts of a job's input; raises RunAborted when it is aborted."""

    async def read() -> EngineInput | None:
        assert job.parts is not None
        return await anext(job.parts, None)

    while True:
        async with unless(run.stopped, read()) as part:
            if run.aborted:
                raise RunAborted
            if part is None:
                return
            yield part

"""What the vLLM engine knows of one job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omnibus.workers.engines.protocol import TextDelta


@dataclass(slots=True)
class Run:
    """One job inside the engine, and what it has made so far."""

    id: str
    aborted: bool = False
    prompt_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    def take(self, text: str, token_ids: Sequence[int]) -> TextDelta:
        """Note what was made."""
        self.texts.append(text)
        self.token_ids.extend(token_ids)
        return TextDelta(text=text, token_ids=tuple(token_ids))

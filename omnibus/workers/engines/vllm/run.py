"""What the vLLM engine knows of one job."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Run:
    """One job inside the engine, and what it has made so far."""

    id: str
    aborted: bool = False
    prompt_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

"""`/v1/audio/speech`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from omnibus.frontdoor.schemas.common import AskingBody, only

SpeechFormat = Literal["wav", "pcm", "flac", "mp3", "opus"]


class SpeechBody(AskingBody):
    """A text to speak."""

    input: str
    voice: Any = None
    """Accepted and not used: a pipeline has the voice that it has."""
    response_format: SpeechFormat = "mp3"
    speed: Annotated[float, only(1.0)] | None = None
    stream_format: Annotated[str | None, only("audio")] = None

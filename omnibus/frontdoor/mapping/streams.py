"""Pieces of an answer while it is made: from a request's events to OpenAI's chunks. Pure.

The client promises that text pieces are contiguous, that an output comes once, after all its text, and before the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnibus.client.request_events import Output, TextPiece
from omnibus.frontdoor.mapping.answering import (
    Head,
    audio,
    chat_id,
    completion_id,
    content_parts,
    finish_reason,
    usage,
)
from omnibus.frontdoor.schemas.chat import ChatChunk, ChunkChoice, MessageOut
from omnibus.frontdoor.schemas.common import Usage
from omnibus.frontdoor.schemas.completions import Completion, CompletionChoice
from omnibus.pipeline.route import Route


def live_stage(route: Route) -> int | None:
    """The stage whose text streams as it is written: the first that delivers text; None when none does."""
    return next((stage.stage_id for stage in route.finals if stage.final == "text"), None)


class ChatStream:
    """A chat's chunks: text as it comes, any other output whole, as soon as it is ready."""

    def __init__(self, head: Head, live: int | None, *, include_usage: bool) -> None:
        self._head, self._include_usage = head, include_usage
        self._live = live
        self._said = ""
        self._has_audio = False

    def opening(self) -> ChatChunk:
        """The first chunk: who speaks."""
        return self._chunk(MessageOut(role="assistant", content=""))

    def text(self, piece: TextPiece) -> list[ChatChunk]:
        """What to say now: nothing for the texts of other stages."""
        if piece.stage_id != self._live:
            return []
        self._said += piece.text
        return [self._chunk(MessageOut(content=piece.text))]

    def output(self, output: Output) -> list[ChatChunk]:
        """A finished output; the one that streamed has been said."""
        if output.stage_id == self._live:
            return []
        if output.modality == "audio" and output.items and not self._has_audio:
            self._has_audio = True
            return [self._chunk(MessageOut(audio=audio(self._head, output, self._said)))]
        return [self._chunk(MessageOut(content=[part])) for part in content_parts(output)]

    def closing(self, outputs: Sequence[Output]) -> list[ChatChunk]:
        """The last chunks: why it ended, and the tokens when they were asked for."""
        end = self._chunk(MessageOut(), finish_reason(outputs))
        if not self._include_usage:
            return [end]
        return [end, self._build([], usage(outputs))]

    def _chunk(self, delta: MessageOut, reason: str | None = None) -> ChatChunk:
        return self._build([ChunkChoice(index=0, delta=delta, finish_reason=reason)])

    def _build(self, choices: list[ChunkChoice], total: Usage | None = None) -> ChatChunk:
        chunk = ChatChunk(
            id=chat_id(self._head),
            object="chat.completion.chunk",
            created=self._head.created,
            model=self._head.model,
            choices=choices,
        )
        # Whoever asked for usage finds it in every chunk, None until the last.
        return chunk.model_copy(update={"usage": total}) if self._include_usage else chunk


class CompletionStream:
    """A completion's chunks."""

    def __init__(self, head: Head, live: int | None, *, include_usage: bool) -> None:
        self._head, self._include_usage = head, include_usage
        self._live = live

    def text(self, piece: TextPiece) -> list[Completion]:
        """What to say now: nothing for the texts of other stages."""
        return [self._chunk(piece.text)] if piece.stage_id == self._live else []

    def closing(self, outputs: Sequence[Output]) -> list[Completion]:
        """The last chunks: why it ended, and the tokens when they were asked for."""
        end = self._chunk("", finish_reason(outputs))
        if not self._include_usage:
            return [end]
        return [end, self._build([], usage(outputs))]

    def _chunk(self, text: str, reason: str | None = None) -> Completion:
        return self._build([CompletionChoice(index=0, text=text, logprobs=None, finish_reason=reason)])

    def _build(self, choices: list[CompletionChoice], total: Usage | None = None) -> Completion:
        chunk = Completion(
            id=completion_id(self._head),
            object="text_completion",
            created=self._head.created,
            model=self._head.model,
            choices=choices,
        )
        # Whoever asked for usage finds it in every chunk, None until the last.
        return chunk.model_copy(update={"usage": total}) if self._include_usage else chunk

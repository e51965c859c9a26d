"""Pieces of an answer while it is made: pure state machines from a request's events to OpenAI's chunks.

Nothing is said twice and nothing is left out: text that was never streamed comes with its output, and an output whose
notice was lost comes with the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnibus.client.events import Output, TextPiece
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


class LiveText:
    """What has been said of the one text that streams."""

    def __init__(self, stage_id: int | None) -> None:
        self._stage_id = stage_id
        self.said = ""

    def is_live(self, stage_id: int) -> bool:
        return stage_id == self._stage_id

    def piece(self, piece: TextPiece) -> str:
        """What to say now: nothing for the texts of other stages."""
        if not self.is_live(piece.stage_id):
            return ""
        self.said += piece.text
        return piece.text

    def rest(self, output: Output) -> str:
        """What of the whole text has not been said."""
        whole = output.text
        if not whole.startswith(self.said):
            return ""  # what is out cannot be taken back
        rest = whole[len(self.said) :]
        self.said = whole
        return rest


class ChatStream:
    """A chat's chunks: text as it comes, any other output whole, as soon as it is ready."""

    def __init__(self, head: Head, live: int | None, *, include_usage: bool) -> None:
        self._head, self._include_usage = head, include_usage
        self._text = LiveText(live)
        self._delivered: set[int] = set()
        self._has_audio = False

    def opening(self) -> ChatChunk:
        """The first chunk: who speaks."""
        return self._chunk(MessageOut(role="assistant", content=""))

    def text(self, piece: TextPiece) -> list[ChatChunk]:
        said = self._text.piece(piece)
        return [self._chunk(MessageOut(content=said))] if said else []

    def missing(self, outputs: Sequence[Output]) -> list[Output]:
        """Those that have not been delivered yet."""
        return [output for output in outputs if output.stage_id not in self._delivered]

    def output(self, output: Output) -> list[ChatChunk]:
        """Chunks of a finished output; none when it was delivered before."""
        if output.stage_id in self._delivered:
            return []
        self._delivered.add(output.stage_id)
        if self._text.is_live(output.stage_id):
            rest = self._text.rest(output)
            return [self._chunk(MessageOut(content=rest))] if rest else []
        if output.modality == "audio" and output.items and not self._has_audio:
            self._has_audio = True
            return [self._chunk(MessageOut(audio=audio(self._head, output, self._text.said)))]
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
        self._text = LiveText(live)

    def text(self, piece: TextPiece) -> list[Completion]:
        said = self._text.piece(piece)
        return [self._chunk(said)] if said else []

    def closing(self, outputs: Sequence[Output]) -> list[Completion]:
        """What was not streamed, why it ended, and the tokens when they were asked for."""
        texts = [output for output in outputs if self._text.is_live(output.stage_id)]
        end = self._chunk("".join(self._text.rest(output) for output in texts), finish_reason(outputs))
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

"""The streamed answer of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omnibus.client.request_events import Output
from omnibus.frontdoor.answers import Usage, known_reason
from omnibus.frontdoor.bodies import Answer
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.endpoints.chat_answers import chat_id, content_parts, sound_out
from omnibus.frontdoor.endpoints.chat_shapes import (
    AudioOut,
    CalledOut,
    CallOut,
    ChatChunk,
    ChunkChoice,
    LogprobsOut,
    MessageOut,
    VideoOut,
)
from omnibus.frontdoor.live_sound import pieces_of
from omnibus.frontdoor.streaming import Frames, TextStream, frame, sliced
from omnibus.wire.envelope import StageTiming
from omnibus.wire.fields import LOGPROBS, REASONING, TEXT, call_of, choice_of, logprobs_in
from omnibus.wire.payload import MP4


class ChatStream(TextStream):
    """A chat's chunks: text, sound and video as they come, any other output whole, as soon as it is ready."""

    _transcribed: int | None = None
    """Pieces of the text that went out beside the sound; None before the sound has begun."""

    _films = False
    """Whether the first bytes of a video are out."""

    def __init__(self, *given: Any) -> None:
        self._opened = {0}
        """Choices whose first chunk is out."""
        self._logprobs: dict[int, list[Mapping[str, object]]] = {}
        """Those of each choice that wait for the chunk with their text."""
        self._call_ids: dict[tuple[int, int], str] = {}
        super().__init__(*given)

    def opening(self) -> list[Answer]:
        """The chunk that says who speaks."""
        return [self._chunk(MessageOut(role="assistant", content=""))]

    def piece(self, text: str | None, reason: str | None = None) -> ChatChunk:
        return self._chunk(MessageOut() if text is None else MessageOut(content=text), reason)

    def text(self, text: str) -> Frames:
        if not self._logprobs.get(0):
            return super().text(text)
        self.sent.append(text)
        return [frame(self._chunk(MessageOut(content=text)))]

    def field(self, name: str, text: str) -> Iterator[Answer]:
        """A piece of reasoning, of a call, or of a further choice; probabilities wait for the text that they belong to."""
        index, own = choice_of(name)
        if index not in self._opened:
            self._opened.add(index)
            yield self._chunk(MessageOut(role="assistant", content=""), index=index)
        if own == LOGPROBS:
            self._logprobs.setdefault(index, []).extend(logprobs_in(text))
        elif own == TEXT:
            yield from (self._chunk(MessageOut(content=piece), index=index) for piece in sliced(text))
        elif own == REASONING:
            for piece in sliced(text):
                yield self._chunk(MessageOut(reasoning=piece, reasoning_content=piece), index=index)
        elif (found := call_of(own)) is not None:
            yield from self._call(index, *found, text)

    def _call(self, index: int, number: int, part: str, text: str) -> Iterator[Answer]:
        """A piece of a call; its id goes out with its name."""
        if part == "id":
            self._call_ids[index, number] = text
            return
        if part == "name":
            call_id, function = self._call_ids.get((index, number), ""), CalledOut(name=text, arguments="")
            calls = [CallOut(index=number, id=call_id, type="function", function=function)]
        else:
            calls = [CallOut(index=number, function=CalledOut(arguments=piece)) for piece in sliced(text)]
        yield from (self._chunk(MessageOut(tool_calls=[call]), index=index) for call in calls)

    def closing(self, outputs: Sequence[Output], timings: Sequence[StageTiming] = ()) -> list[Answer]:
        """The last chunks: why each choice ended, and the tokens when they were asked for."""
        text = next((output for output in outputs if output.modality == "text"), None)
        others = text.choices[1:] if text is not None else ()
        ends = [self._chunk(MessageOut(), known_reason(one.finish_reason), one.index) for one in others]
        first, *totals = super().closing(outputs, timings)
        return [first, *ends, *totals]

    def output(self, output: Output) -> Iterator[Answer]:
        """A finished output, or what is left of the sound; the text that streamed has been sent."""
        if output.stage_id == self.live:
            return
        if output.modality == "audio" and output.items and self.live_sound.is_of(output.stage_id):
            yield from self.sound(output.items[0], is_whole=True)
            return
        yield from (self._chunk(MessageOut(content=[part])) for part in content_parts(output))

    def sound(self, data: bytes, *, is_whole: bool = False) -> Iterator[Answer]:
        """The next bytes of the sound, with the text that came meanwhile; at its end also the text alone."""
        for piece in pieces_of(data) or [b""] * is_whole:
            has_begun, said = self._transcribed is not None, "".join(self.sent[self._transcribed or 0 :])
            if piece or said or not has_begun:
                self._transcribed = len(self.sent)
                audio = AudioOut(data=to_base64(piece)) if has_begun else sound_out(self.head, piece, said)
                yield self._chunk(MessageOut(audio={**audio, "transcript": said} if said else audio))

    def video(self, data: bytes) -> Iterator[Answer]:
        """The next bytes of the video."""
        for piece in pieces_of(data):
            video = VideoOut(data=to_base64(piece))
            if not self._films:
                self._films, video["media_type"] = True, MP4
            yield self._chunk(MessageOut(video=video))

    def totals(self, total: Usage) -> ChatChunk:
        return self._build([], total)

    def _chunk(self, delta: MessageOut, reason: str | None = None, index: int = 0) -> ChatChunk:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason)
        if logprobs := self._logprobs.pop(index, None):
            choice["logprobs"] = LogprobsOut(content=logprobs)
        return self._build([choice])

    def _build(self, choices: list[ChunkChoice], total: Usage | None = None) -> ChatChunk:
        head = self.head
        chunk = ChatChunk(
            id=chat_id(head), object="chat.completion.chunk", created=head.created, model=head.model, choices=choices
        )
        # A caller that asked for usage finds it in every chunk, None until the last.
        return {**chunk, "usage": total or self.so_far} if self.include_usage else chunk

"""The items of a response's input, as callers send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from omnibus.frontdoor.bodies import Body
from omnibus.frontdoor.chat_messages import MAX_MESSAGES, MAX_PARTS, InputAudio, RefusalContent

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TextPartIn(Body):
    type: Literal["input_text"]
    text: str


class PicturePartIn(Body):
    """A picture: one of a URL and a stored file."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None


class FilePartIn(Body):
    """A picture, sound, video or text: one of a data URL and a stored file."""

    type: Literal["input_file"]
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class SoundPartIn(Body):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AnswerPartIn(Body):
    """A text of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


InputContent = Annotated[
    TextPartIn | PicturePartIn | FilePartIn | SoundPartIn | AnswerPartIn | RefusalContent, Field(discriminator="type")
]
Contents = Annotated[list[InputContent], Field(max_length=MAX_PARTS, fail_fast=True)]


class MessageIn(Body):
    """A turn; its type may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Contents
    id: str | None = None
    status: ItemStatus | None = None
    phase: str | None = None


class FunctionCallIn(Body):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionOutputIn(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Contents
    id: str | None = None
    status: ItemStatus | None = None


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Body):
    type: Literal["summary_text"]
    text: str


class ReasoningIn(Body):
    """The reasoning of an earlier answer."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[SummaryText], Field(max_length=MAX_PARTS)] | None = None
    content: Annotated[list[ReasoningText], Field(max_length=MAX_PARTS)] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        """The reasoning itself; its summary where that is all there is."""
        return "".join(part.text for part in self.content or self.summary or ())


class PictureIn(Body):
    """A picture of an earlier answer. Chats do not show it to the model; send it as `input_image` for that."""

    type: Literal["image_generation_call"]
    id: str | None = None
    result: str | None = None
    status: str | None = None
    action: str | None = None
    output_format: str | None = None
    quality: str | None = None
    background: str | None = None
    size: str | None = None
    revised_prompt: str | None = None


def _type_of(item: Any) -> str | None:
    found = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if found is None else found


InputItem = Annotated[
    Annotated[MessageIn, Tag("message")]
    | Annotated[FunctionCallIn, Tag("function_call")]
    | Annotated[FunctionOutputIn, Tag("function_call_output")]
    | Annotated[ReasoningIn, Tag("reasoning")]
    | Annotated[PictureIn, Tag("image_generation_call")],
    Discriminator(_type_of),
]
Input = str | Annotated[list[InputItem], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def shapes_of(given: Input, response_id: str) -> list[dict[str, Any]]:
    """The items of an input as they are kept, each with an id."""
    if isinstance(given, str):
        given = [MessageIn(role="user", content=[TextPartIn(type="input_text", text=given)])]
    digits = response_id.partition("_")[2]
    return [_shape(item, f"in_{digits}{number:04x}") for number, item in enumerate(given)]


def _shape(item: Any, new_id: str) -> dict[str, Any]:
    shape: dict[str, Any] = item.model_dump(exclude_none=True)
    shape["id"] = shape.get("id") or new_id
    if isinstance(item, MessageIn):
        if isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            shape["content"] = [{"type": kind, "text": item.content}]
        shape.setdefault("status", "completed")
    return shape

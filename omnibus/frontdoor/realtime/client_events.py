"""The events that a client sends, with OpenAI's names; what is not served is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from omnibus.frontdoor.bodies import Body
from omnibus.frontdoor.realtime.session_settings import ResponseSettings, SessionSettings

_Id = Annotated[str, Field(min_length=1, max_length=64)]
_MAX_PARTS = 64


class _Event(Body):
    event_id: Annotated[str, Field(max_length=512)] | None = None
    """Comes back in the error that the event leads to."""


class UpdateSession(_Event):
    type: Literal["session.update"]
    session: SessionSettings


class AppendAudio(_Event):
    type: Literal["input_audio_buffer.append"]
    audio: str
    """Base64 of samples."""


class CommitAudio(_Event):
    type: Literal["input_audio_buffer.commit"]


class ClearAudio(_Event):
    type: Literal["input_audio_buffer.clear"]


class InputText(Body):
    type: Literal["input_text"]
    text: str


class InputSound(Body):
    type: Literal["input_audio"]
    audio: str
    """Base64 of samples."""
    transcript: str | None = None
    """For the client's own use."""


class InputImage(Body):
    type: Literal["input_image"]
    image_url: str


class OutputText(Body):
    type: Literal["output_text"]
    text: str


class OutputSound(Body):
    """An earlier answer of an assistant that spoke: what it said."""

    type: Literal["output_audio"]
    transcript: str


ContentBody = Annotated[
    InputText | InputSound | InputImage | OutputText | OutputSound, Field(discriminator="type")
]  # fmt: skip


class ItemBody(Body):
    id: _Id | None = None
    type: Literal["message"]
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    """Without effect."""
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[ContentBody], Field(min_length=1, max_length=_MAX_PARTS)]


class CreateItem(_Event):
    type: Literal["conversation.item.create"]
    item: ItemBody
    previous_item_id: _Id | None = None


class RetrieveItem(_Event):
    type: Literal["conversation.item.retrieve"]
    item_id: str


class DeleteItem(_Event):
    type: Literal["conversation.item.delete"]
    item_id: str


class TruncateItem(_Event):
    type: Literal["conversation.item.truncate"]
    item_id: str
    content_index: Annotated[int, Field(ge=0)]
    audio_end_ms: Annotated[int, Field(ge=0)]


class CreateResponse(_Event):
    type: Literal["response.create"]
    response: ResponseSettings | None = None


class CancelResponse(_Event):
    type: Literal["response.cancel"]
    response_id: str | None = None


ClientMessage = (
    UpdateSession | AppendAudio | CommitAudio | ClearAudio | CreateItem | RetrieveItem | DeleteItem | TruncateItem
    | CreateResponse | CancelResponse
)  # fmt: skip


class ClientEvent(RootModel[Annotated[ClientMessage, Field(discriminator="type")]]):
    """One message of a client."""

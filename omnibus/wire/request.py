"""A producer's request: the body of `omni.<pipeline>.request.<rid>`.

The body is MessagePack or JSON, and its first byte shows which; docs/reference/wire.md describes it for other languages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from omnibus.errors import InvalidRequest

REQUEST_MEDIA_TYPE = "application/vnd.omnibus.request"
"""Media type of an encoded request in a payload."""
REPLY_HEADER = "Omni-Reply"
"""Header of a raw request that names the token of the `out` subject that its producer listens to."""
Lane = Literal["interactive", "batch"]


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text inside a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """An image inside a message: the encoded file (PNG, JPEG, WebP, …)."""

    data: bytes
    media_type: str = "image/png"


class AudioPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="audio"):
    """Audio inside a message: the encoded file (WAV, MP3, …)."""

    data: bytes
    media_type: str = "audio/wav"


class VideoPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="video"):
    """Video inside a message: the encoded file."""

    data: bytes
    media_type: str = "video/mp4"


Part = TextPart | ImagePart | AudioPart | VideoPart


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a chat."""

    role: str
    content: str | tuple[Part, ...]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a pipeline. Exactly one of `prompt` and `messages` is given."""

    v: int = 1
    prompt: str | tuple[int, ...] | None = None
    """Text, or token ids of the first stage's tokenizer."""
    messages: tuple[Message, ...] | None = None
    """A chat; the first stage applies its chat template."""
    modalities: tuple[str, ...] | None = None
    """Outputs wanted, such as `("text", "audio")`; None: every final output of the pipeline."""
    # Open by nature: each engine has its own parameters, and validates them.
    sampling_params: dict[str, dict[str, Any]] = {}
    """Overrides a stage, by stage name (or id as a string), over the stage's defaults."""
    stream: bool = True
    """Publish deltas while stages run."""
    deadline: float | None = None
    """Seconds from now; None: the pipeline's; never more than the pipeline's."""
    lane: Lane = "interactive"
    priority: int = 0
    """Passed to engines that schedule by priority; lower runs earlier, as in vLLM."""
    tenant: str = "default"
    lora: str | None = None
    cache_salt: str | None = None
    """Keeps an LLM's prefix cache apart: only requests with the same salt share it."""
    affinity: str | None = None
    """A name. Requests that have the same one go to the same replica of each directed stage while it is up."""
    # Open by nature: each model's processor has its own.
    mm_processor_kwargs: dict[str, Any] = {}
    """Arguments for the processor of the media in this prompt, as in vLLM; over those of the stage's engine."""
    trace: dict[str, str] = {}
    """W3C trace context headers."""
    fingerprint: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Digest of all that a caller asked a front door for, file formats too; only where it gave an idempotency key."""

    def text(self) -> str:
        """Return all text of the prompt or of the messages, for engines without a chat template."""
        if isinstance(self.prompt, str):
            return self.prompt
        if self.messages is None:
            return ""
        return "\n".join(_text_of(message.content) for message in self.messages if message.role != "assistant")


def encode_request(request: Request) -> bytes:
    """Encode a request as MessagePack; raises InvalidRequest for what MessagePack cannot hold."""
    try:
        return msgspec.msgpack.encode(request)
    except (OverflowError, TypeError, ValueError, RecursionError) as error:  # 65-bit integers, half a surrogate pair
        raise InvalidRequest(f"malformed request: {error}") from error


def checked(request: Request) -> Request:
    """Return a request made in Python as its receivers will read it; raises InvalidRequest for a value of a wrong type.

    Constructors check no types, and a request whose record cannot be read would never end.
    """
    return decode_request(encode_request(request))


def decode_request(data: bytes) -> Request:
    """Decode a producer's message, MessagePack or JSON; raises InvalidRequest."""
    # A MessagePack map never starts with the byte of "{" (0x7b, an integer there); leading space is JSON too.
    try:
        if data[:1] in (b"{", b" ", b"\n"):
            return msgspec.json.decode(data, type=Request)
        return msgspec.msgpack.decode(data, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"malformed request: {error}") from error


def _text_of(content: str | tuple[Part, ...]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart))

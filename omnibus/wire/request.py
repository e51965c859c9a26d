"""A producer's request: the body of `omni.<pipeline>.request.<rid>`.

The body is MessagePack or JSON, and its first byte shows which; docs/reference/wire.md describes it for other languages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec

from omnibus.errors import InvalidRequest

REQUEST_MEDIA_TYPE = "application/vnd.omnibus.request"
"""Media type of an encoded request in a payload."""
REPLY_HEADER = "Omni-Reply"
"""Header of a raw request that names the token of the `out` subject that its producer listens to."""
Lane = Literal["interactive", "batch"]


class TextPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text inside a message."""

    text: str


class _FilePart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file inside a message, encoded."""

    data: bytes
    argument: str | None = None
    """The argument of a diffusion pipeline that it is, such as `last_image`; `mask` is its mask, whatever that is called there.
    None: the first that takes a file of its kind."""


class ImagePart(_FilePart, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """An image: PNG, JPEG, WebP, …"""

    media_type: str = "image/png"


class AudioPart(_FilePart, frozen=True, kw_only=True, tag_field="type", tag="audio"):
    """A sound: WAV, MP3, …"""

    media_type: str = "audio/wav"


class VideoPart(_FilePart, frozen=True, kw_only=True, tag_field="type", tag="video"):
    """A video: MP4, WebM, …"""

    media_type: str = "video/mp4"


Part = TextPart | ImagePart | AudioPart | VideoPart


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that an assistant's turn called."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call inside an assistant's turn."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a chat is shown to a model, and its answer read. Names and meanings are vLLM's; None: its default."""

    # Open by nature: JSON schemas, templates' variables.
    tools: tuple[dict[str, Any], ...] | None = None
    """Functions that the model may call: `{type: function, function: {name, description, parameters}}`."""
    tool_choice: str | dict[str, Any] | None = None
    """`auto`, `none`, `required`, or `{type: function, function: {name}}`."""
    parallel_tool_calls: bool | None = None
    """False: one call at most."""
    chat_template: str | None = None
    """Only where the stage trusts those of requests."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the template, over the stage's."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """The last turn is the beginning of the answer."""
    documents: tuple[dict[str, Any], ...] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One turn of a chat. What is beside role and content is for the chat template of the first stage."""

    role: str
    content: str | tuple[Part, ...] = ""
    reasoning: str | None = None
    """The reasoning of an assistant's turn."""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of an assistant's turn."""
    tool_call_id: str | None = None
    """The call that a tool's turn answers."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to a pipeline. Exactly one of `prompt` and `messages` is given."""

    v: Literal[1] = 1
    prompt: str | tuple[int, ...] | None = None
    """Text, or token ids of the first stage's tokenizer."""
    messages: tuple[Message, ...] | None = None
    """A chat; the first stage applies its chat template."""
    chat: ChatOptions | None = None
    """Options of the chat."""
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
    resumable: bool = False
    """Its input stays open: this is its first segment, and others follow until one that ends it."""

    def text(self) -> str:
        """Return all text of the prompt or of the messages, for engines without a chat template."""
        if isinstance(self.prompt, str):
            return self.prompt
        if self.messages is None:
            return ""
        return "\n".join(_text_of(message.content) for message in self.messages if message.role != "assistant")

    def negative_prompt(self, stages: Collection[str] = ()) -> str | None:
        """The negative prompt among the parameters of stages, for a stage that encodes it; None where it is empty.

        Those of `stages` count, by name or id; of all stages where none is given. Raises InvalidRequest for one that is no
        text, and for two that differ.
        """
        counted = [params for ref, params in self.sampling_params.items() if not stages or ref in stages]
        given = [params["negative_prompt"] for params in counted if params.get("negative_prompt")]
        if not all(isinstance(one, str) for one in given) or len({one for one in given if one.strip()}) > 1:
            raise InvalidRequest("negative_prompt is one text, the same for every stage", param="negative_prompt")
        return next((one for one in given if one.strip()), None)


class Segment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A further segment of an open input: one of `prompt` and `messages`, or none of them to end the input."""

    prompt: str | tuple[int, ...] | None = None
    """Text, or token ids of the first stage's tokenizer."""
    messages: tuple[Message, ...] | None = None
    """More turns of a chat."""
    end: bool = False
    """No segment follows."""

    @property
    def is_empty(self) -> bool:
        """Whether it only ends the input."""
        return self.prompt is None and self.messages is None

    def as_request(self) -> Request:
        """The same content as a request has it."""
        return Request(prompt=self.prompt, messages=self.messages)


def media_parts(messages: Iterable[Message]) -> Iterator[tuple[str, ImagePart | AudioPart | VideoPart]]:
    """The files of a chat, each with its place, such as `messages[1].content[0].image`."""
    for index, message in enumerate(messages):
        for place, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if not isinstance(part, TextPart):
                yield f"messages[{index}].content[{place}].{part.__struct_config__.tag}", part


def encode_request(request: Request) -> bytes:
    """Encode a request as MessagePack; raises InvalidRequest, naming the field, for what MessagePack cannot hold."""
    try:
        return msgspec.msgpack.encode(request)
    except _UNWRITABLE as error:
        raise InvalidRequest(f"malformed request: {error}", param=_culprit(request)) from error


def checked(request: Request) -> Request:
    """Return a request made in Python as its receivers will read it; raises InvalidRequest for a value of a wrong type.

    Constructors check no types, and a request whose record cannot be read would never end.
    """
    return decode_request(encode_request(request))


def checked_segment(segment: Segment) -> Segment:
    """Return a segment as its readers will have it; raises InvalidRequest for a value of a wrong type."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(segment), type=Segment)
    except (*_UNWRITABLE, msgspec.ValidationError) as error:
        raise InvalidRequest(f"malformed segment: {error}", param=_place_of(error)) from error


def decode_request(data: bytes) -> Request:
    """Decode a producer's message, MessagePack or JSON; raises InvalidRequest naming the field."""
    if not data[:1].startswith((b"{", b" ", b"\n")) and not _begins_map(data):
        raise InvalidRequest("malformed request: neither a JSON object nor a MessagePack map")
    # A MessagePack map never starts with the byte of "{" (0x7b, an integer there); leading space is JSON too.
    decode = msgspec.json.decode if data[:1] in (b"{", b" ", b"\n") else msgspec.msgpack.decode
    try:
        try:
            return decode(data, type=Request)
        except msgspec.ValidationError:
            return request_from(decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"malformed request: {error}", param=_place_of(error)) from error


def _begins_map(data: bytes) -> bool:
    return bool(data) and (data[0] & 0xF0 == 0x80 or data[0] in (0xDE, 0xDF))


def request_from(fields: Any) -> Request:
    """The request that a mapping describes; raises msgspec.ValidationError.

    Nulls, and unknown fields that ask for nothing, are left out; any other unknown field is an error: nothing that a
    request asks for is ignored.
    """
    if isinstance(fields, Mapping):
        fields = _asked(fields, Request)
        if isinstance(messages := fields.get("messages"), list | tuple):
            fields["messages"] = [_asked(turn, Message) if isinstance(turn, Mapping) else turn for turn in messages]
        if isinstance(chat := fields.get("chat"), Mapping):
            fields["chat"] = _asked(chat, ChatOptions)
    return msgspec.convert(fields, Request)


def asks_nothing(value: object) -> bool:
    """Whether the value of an unknown field asks for nothing: null, false, or empty."""
    return value is None or value is False or value in ("", [], {}, ())


def _asked(fields: Mapping[Any, Any], kind: type[msgspec.Struct]) -> dict[Any, Any]:
    known = kind.__struct_fields__
    return {
        name: value
        for name, value in fields.items()
        if (value is not None if name in known else not asks_nothing(value))
    }


def _place_of(error: Exception) -> str | None:
    """The field that an error of msgspec is about, as a path from the request."""
    path = re.search(r" - at `(?:key in )?\$\.?(.*)`$", str(error))
    unknown = re.search(r"(?:unknown|required) field `(.*?)`", str(error))
    steps = [found[1].replace("[...]", "") for found in (path, unknown) if found is not None and found[1]]
    return ".".join(steps) or None


def _culprit(value: Any) -> str | None:
    """Where inside a value the first thing is that cannot be encoded."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, child in items:
        try:
            msgspec.msgpack.encode(child)
        except _UNWRITABLE:
            step, rest = f"[{name}]" if isinstance(name, int) else str(name), _culprit(child)
            return step if rest is None else f"{step}{rest}" if rest.startswith("[") else f"{step}.{rest}"
    return None


_UNWRITABLE = (OverflowError, TypeError, ValueError, RecursionError)
"""Errors of the encoder: integers of more than 64 bits, half a surrogate pair, types that MessagePack does not have."""


def _text_of(content: str | tuple[Part, ...]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart))

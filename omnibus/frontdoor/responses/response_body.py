"""The body of `POST /v1/responses`, and the chat that it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, PrivateAttr, Tag

from omnibus.errors import InvalidRequest, UnsupportedModality
from omnibus.frontdoor.bodies import AskingBody, Body, Metadata, TextSampling
from omnibus.frontdoor.chat_messages import files_in
from omnibus.frontdoor.endpoints.answer_options import MAX_TOOLS
from omnibus.frontdoor.endpoints.chat import ChatBody, chat_request
from omnibus.frontdoor.endpoints.images import ImageFormat, Size, sides, steps_between_previews
from omnibus.frontdoor.outbound.web_files import NamedFile
from omnibus.frontdoor.responses.chat_turns import ChatTurns
from omnibus.frontdoor.responses.input_items import Input, InputItem, MessageIn
from omnibus.frontdoor.responses.piece_maker import IMAGE_TOOL
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.chat_checks import STRUCTURED
from omnibus.wire.request import Request

MAX_PREVIEWS = 3
LOGPROBS_INCLUDED = "message.output_text.logprobs"
Include = Literal["message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content"]
"""Parts that may be asked for. Pictures of the input, and reasoning, are in every answer, as they are."""
_CALLED = MappingProxyType(
    {
        "prompt": "input", "messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format", STRUCTURED: "text.format", "reasoning_effort": "reasoning.effort",
        "logprobs": "top_logprobs", "modalities": "tools", "width": "tools", "height": "tools", "previews": "tools",
    }
)  # fmt: skip
"""The caller's names of a chat's fields."""
_HEAD = re.compile(r"[.\[]")


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """The same as a chat has it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class PictureTool(Body):
    """The stage that paints: it does so whenever the tool is there, and `tool_choice` is not none."""

    type: Literal["image_generation"]
    size: Size | None = None
    output_format: ImageFormat | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PREVIEWS)] | None = None
    action: Literal["auto", "generate"] | None = None


Tool = Annotated[FunctionTool | PictureTool, Field(discriminator="type")]


class NamedFunction(Body):
    type: Literal["function"]
    name: str


class NamedTool(Body):
    type: Literal["image_generation"]


class AllowedTools(Body):
    """The tools among which the model may choose."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)]


def _kind_of(choice: Any) -> str:
    if isinstance(choice, str):
        return "word"
    return str(choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None))


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedFunction, Tag("function")]
    | Annotated[NamedTool, Tag(IMAGE_TOOL)]
    | Annotated[AllowedTools, Tag("allowed_tools")],
    Discriminator(_kind_of),
]


class PlainFormat(Body):
    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    """A JSON schema that the text follows."""

    type: Literal["json_schema"]
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Body):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None


class ReasoningOptions(Body):
    effort: str | None = None
    summary: Literal["auto"] | None = None
    """Reasoning is answered whole, as it was written; there is no summary of it."""
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class EventOptions(Body):
    """Options of a stream."""

    include_obfuscation: Literal[False] | None = None


@dataclass(frozen=True, slots=True)
class EarlierTurns:
    """A conversation that a response goes on from, its input at the end."""

    turns: ChatTurns
    before: list[dict[str, Any]]
    """The items before the input."""


class ResponseBody(AskingBody, TextSampling):
    """A turn of a conversation."""

    called: ClassVar[Mapping[str, str]] = _CALLED

    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    """A stored response, whose conversation this one goes on from."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Include] | None = None
    truncation: Literal["disabled"] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    """Whether it can be read later; true, unless it says otherwise."""
    background: bool | None = None
    """Answered at once; it is made all the same, whatever becomes of its caller and of the front door."""
    stream_options: EventOptions | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    _conversation: EarlierTurns | None = PrivateAttr(None)

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def own_items(self) -> Sequence[InputItem]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageIn(role="user", content=self.input)]
        return self.input

    @property
    def picture(self) -> PictureTool | None:
        """The tool that paints, where it may be used."""
        may = self.tool_choice != "none" and not isinstance(self.tool_choice, NamedFunction)
        return next((tool for tool in self.tools or () if isinstance(tool, PictureTool) and may), None)

    def going_on(self, conversation: EarlierTurns) -> None:
        """Go on from a conversation, which has the input at its end."""
        self._conversation = conversation

    @property
    def conversation(self) -> EarlierTurns:
        assert self._conversation is not None
        return self._conversation

    def field_of(self, param: str) -> str:
        if self._conversation is not None and (named := self._conversation.turns.field_of(param)) != param:
            return named
        if (param.startswith("tools[") and ".function" in param) or param.startswith("tool_choice.function"):
            return param.replace(".function", "", 1)
        if param == "logprobs" and self.top_logprobs is None:
            return "include"
        head, *rest = _HEAD.split(param, maxsplit=1)
        if head == "response_format" and rest:
            return f"text.format.{rest[0]}"
        return super().field_of(param)

    def named_files(self) -> Iterable[NamedFile]:
        return files_in(self.conversation.turns.messages)

    def as_chat(self, modalities: tuple[str, ...]) -> ChatBody:
        """The chat that it is."""
        shared = {name: getattr(self, name) for name in (*AskingBody.model_fields, *TextSampling.model_fields)}
        tools, choice = self._functions()
        logprobs = bool(self.top_logprobs) or LOGPROBS_INCLUDED in (self.include or ())
        chat = ChatBody(
            **shared, messages=self.conversation.turns.messages, modalities=list(modalities), tools=tools or None,
            tool_choice=choice, parallel_tool_calls=self.parallel_tool_calls, response_format=self._format(),
            max_completion_tokens=self.max_output_tokens, logprobs=logprobs or None, top_logprobs=self.top_logprobs,
            reasoning_effort=None if self.reasoning is None else self.reasoning.effort,
        )  # fmt: skip
        chat.keep_fetched(self.fetched)
        return chat

    def _functions(self) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
        """The functions and the choice among them, as a chat has both."""
        functions = {tool.name: tool.as_chat() for tool in self.tools or () if isinstance(tool, FunctionTool)}
        match self.tool_choice:
            case NamedFunction(name=name):
                return list(functions.values()), {"type": "function", "function": {"name": name}}
            case NamedTool():
                return [], None
            case AllowedTools(mode=mode, tools=tools):
                names = [str(tool.get("name")) for tool in tools if tool.get("type") == "function"]
                unknown = next((name for name in names if name not in functions), None)
                if unknown is not None:
                    raise InvalidRequest(f"there is no function {unknown!r} among the tools", param="tool_choice.tools")
                return [functions[name] for name in names], mode
            case "required" if not functions and self.picture is not None:
                return [], None
            case choice:
                return list(functions.values()), choice

    def _format(self) -> dict[str, Any] | None:
        match self.text.format if self.text is not None else None:
            case PlainFormat(type=kind):
                return {"type": kind}
            case SchemaFormat() as wanted:
                schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
                return {"type": "json_schema", "json_schema": schema}
        return None


def response_request(body: ResponseBody, spec: PipelineSpec) -> Request:
    """The request that a response is; raises RequestError naming the field."""
    picture, has_text = body.picture, "text" in spec.modalities
    if picture is not None and "image" not in spec.modalities:
        raise UnsupportedModality(f"model {spec.name!r} makes no pictures", param="tools")
    if picture is None and isinstance(body.tool_choice, NamedTool):
        raise InvalidRequest("tool_choice names a tool that is not among the tools", param="tool_choice")
    if picture is None and not has_text:
        raise UnsupportedModality(f"model {spec.name!r} writes no text: give it the tool {IMAGE_TOOL}", param="tools")
    wants_text = has_text and not isinstance(body.tool_choice, NamedTool)
    modalities = (*(("text",) if wants_text else ()), *(("image",) if picture is not None else ()))
    return chat_request(body.as_chat(modalities), spec, _image_params(body, picture, spec))


def _image_params(body: ResponseBody, picture: PictureTool | None, spec: PipelineSpec) -> dict[str, Any]:
    if picture is None:
        return {}
    wanted = picture.partial_images if body.stream or body.background else None
    previews = steps_between_previews(wanted, None, spec)
    return {**sides(picture.size), **({} if previews is None else {"previews": previews})}

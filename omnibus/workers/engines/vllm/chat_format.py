"""Chats in vLLM's terms: the options of a request, and the parsers of a stage, which are vLLM's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from jinja2 import TemplateError
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionNamedToolChoiceParam, ChatCompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.parser import Parser, ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.chat_utils import load_chat_template
from vllm.renderers.params import ChatParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.tool_parsers import ToolParserManager

from omnibus.errors import EngineRejected, PipelineError
from omnibus.pipeline.engines import PACKAGE_SCHEME
from omnibus.wire.request import ChatOptions, Message, TextPart
from omnibus.workers.engines.checkpoints import find_model
from omnibus.workers.engines.protocol import Job
from omnibus.workers.engines.vllm.arguments import VllmArguments
from omnibus.workers.engines.vllm.sampling_params import rejected

_NO_OPTIONS = ChatOptions()
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}
_ANY_ARGUMENTS = {"type": "object", "additionalProperties": True}


class ChatFormat:
    """The chats of one stage: how they are shown to its model, and how its answers are read."""

    def __init__(self, arguments: VllmArguments, renderer: Any, model_config: Any) -> None:
        """Raises PipelineError for a parser or a template that is not there, or does not suit the model."""
        self._arguments, self._renderer, self._model = arguments, renderer, model_config
        self._template = _template(arguments.chat_template)
        self.plain = ChatParams(
            chat_template=self._template,
            chat_template_kwargs={"add_generation_prompt": True, **arguments.chat_template_kwargs},
        )
        """Parameters of a chat without options."""
        self._parser = None if renderer.tokenizer is None else _parser(arguments, renderer.tokenizer, model_config)
        self._shows: dict[str, bool] = {}
        """Whether the stage's template shows tools, and calls of earlier turns."""

    def of(self, job: Job, *, decodes: bool = False, reads: bool = True) -> Chat | None:
        """A job's chat; None where it has nothing to show or to read beside plain text.

        `decodes`: another stage has shown the chat to the model. `reads`: this one reads the answer. Raises EngineRejected for
        what cannot be served.
        """
        asked, messages = job.stage_input.request.chat, job.engine_input.messages
        if messages is None and decodes:
            messages = job.stage_input.request.messages
        if messages is None:
            if asked is not None and not job.stage_input.sources:
                raise EngineRejected(
                    "options of a chat need messages, and this stage is given a prompt", param="messages"
                )
            return None
        if asked is None and self._parser is None:
            self._check_shown(_NO_OPTIONS, messages, self.plain)
            return None
        return self._chat(asked or _NO_OPTIONS, messages, job.sampling, reads=reads)

    def _chat(
        self, asked: ChatOptions, messages: Sequence[Message], sampling: Mapping[str, Any], *, reads: bool
    ) -> Chat:
        self._check(asked, reads=reads)
        try:
            request = ChatCompletionRequest.model_validate(_fields(asked, messages, sampling))
            params = request.build_chat_params(self._template, "auto").with_defaults(
                {
                    "tools": [tool.model_dump() for tool in request.tools or ()] or None,
                    **self.plain.chat_template_kwargs,
                }
            )
            self._check_shown(asked, messages, params)
            chat = Chat(request, params, self._model, self._renderer.tokenizer, self._parser)
            return chat.adjusted()
        except (ValidationError, VLLMClientError, ValueError, TypeError) as error:
            raise _named(error) from error

    def _check(self, asked: ChatOptions, *, reads: bool) -> None:
        trusted = self._arguments.trust_request_chat_template
        if not trusted and (asked.chat_template is not None or "chat_template" in (asked.chat_template_kwargs or ())):
            message = "a request's own template needs `trust_request_chat_template: true` in the stage's engine_args"
            raise EngineRejected(message, param="chat_template")
        has_parser = self._parser is not None and self._parser.tool_parser_cls is not None
        if reads and asked.tools and asked.tool_choice != "none" and not has_parser:
            raise EngineRejected("tools need a `tool_call_parser` in the stage's engine_args", param="tools")

    def _check_shown(self, asked: ChatOptions, messages: Sequence[Message], params: ChatParams) -> None:
        """Raise EngineRejected for tools, and for calls of earlier turns, that the template would leave out without a word."""
        for param, is_given in (
            ("tools", bool(asked.tools) and asked.tool_choice != "none"),
            ("messages", any(message.tool_calls for message in messages)),
        ):
            if is_given and not self._is_shown(param, params):
                what = "tools" if param == "tools" else "calls of earlier turns"
                hint = "name one that does, `chat_template` in the stage's engine_args"
                raise EngineRejected(f"the chat template does not show {what} to the model: {hint}", param=param)

    def _is_shown(self, param: str, params: ChatParams) -> bool:
        if params.chat_template != self._template:
            return self._differs(param, params)
        if param not in self._shows:
            self._shows[param] = self._differs(param, params)
        return self._shows[param]

    def _differs(self, param: str, params: ChatParams) -> bool:
        """Whether a prompt is another one with a tool, or with another call; also where the template takes no such chat."""
        chats = [_with_call("left"), _with_call("right")] if param == "messages" else [_with_call(None)] * 2
        tools = [[_TOOL], [_TOOL]] if param == "messages" else [None, [_TOOL]]
        try:
            first, second = (
                self._renderer.render_messages(
                    chat, replace(params, chat_template_kwargs={**params.chat_template_kwargs, "tools": shown})
                )[1]
                for chat, shown in zip(chats, tools, strict=True)
            )
        except (VLLMClientError, TemplateError, ValueError, TypeError, LookupError):
            return True
        return bool(first != second)


@dataclass(frozen=True, slots=True)
class Chat:
    """One chat as vLLM has it."""

    request: ChatCompletionRequest
    params: ChatParams
    model: Any
    tokenizer: Any
    parser: type[Parser] | None

    @property
    def names_its_tool(self) -> bool:
        return isinstance(self.request.tool_choice, ChatCompletionNamedToolChoiceParam)

    def new_parser(self) -> Parser | None:
        """A parser for one choice; it has a state."""
        if self.parser is None:
            return None
        arguments = self.params.chat_template_kwargs
        return self.parser(self.tokenizer, self.request.tools, model_config=self.model, chat_template_kwargs=arguments)

    def adjusted(self) -> Chat:
        """The chat as its parser needs it: a grammar for calls, special tokens that are not skipped."""
        asks = self.request.tool_choice != "none"
        parser = self.new_parser()
        if parser is None or not (parser.always_adjust_request or parser.reasoning_parser is not None or asks):
            return self
        tools = self.request.tools
        adjusted = parser.adjust_request(self.request.model_copy(update={"tools": self._bound_tools()}))
        return replace(self, request=adjusted.model_copy(update={"tools": tools}))

    def _bound_tools(self) -> Any:
        """The tools as a grammar binds calls to them: the arguments of one that is not strict may be any object.

        vLLM lets them be any JSON, which no client reads. Where a call is of the model's own accord, no tool that is not strict
        may have a grammar made.
        """
        tools, cls = self.request.tools, self.parser.tool_parser_cls if self.parser is not None else None
        is_free = self.request.tool_choice == "auto" and not any(tool.function.strict for tool in tools or ())
        if not tools or cls is None or cls.structural_tag_model is None or is_free:
            return tools
        loose = {"strict": True, "parameters": _ANY_ARGUMENTS}
        return [
            tool
            if tool.function.strict
            else tool.model_copy(update={"function": tool.function.model_copy(update=loose)})
            for tool in tools
        ]

    def sampling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Sampling parameters with what the parser changed."""
        ours = {name: getattr(self.request, name) for name in ("skip_special_tokens", "spaces_between_special_tokens")}
        return {**given, **ours, "structured_outputs": self.request.extract_structured_outputs()}

    def engine_arguments(self, prompt: Sequence[int]) -> dict[str, Any]:
        """Arguments of `generate` that tell a grammar where the reasoning ends."""
        parser = self.new_parser()
        if parser is None or parser.reasoning_parser is None:
            return {}
        return {
            "reasoning_ended": self.request.resolve_reasoning_ended(parser, list(prompt)),
            "reasoning_parser_kwargs": {"chat_template_kwargs": self.params.chat_template_kwargs},
        }


def structured(given: Mapping[str, Any] | None) -> StructuredOutputsParams | None:
    """Raises EngineRejected for constraints that vLLM does not know, or for several at once."""
    try:
        return None if given is None else StructuredOutputsParams(**given)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise rejected(error, "structured_outputs") from error


def _fields(asked: ChatOptions, messages: Sequence[Message], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The body of vLLM's own request; what is not asked for is left out, as some of its checks ask what was given."""
    options: dict[str, Any] = {name: value for name, value in msgspec.to_builtins(asked).items() if value is not None}
    if asked.continue_final_message:
        options.setdefault("add_generation_prompt", False)
    names = ("skip_special_tokens", "spaces_between_special_tokens", "structured_outputs")
    given = {name: sampling[name] for name in names if sampling.get(name) is not None}
    return {**options, **given, "messages": [_turn(message) for message in messages]}


def _turn(message: Message) -> dict[str, Any]:
    """A turn without its files, which no parser reads."""
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(message, content=""))
    content = message.content
    text = content if isinstance(content, str) else "".join(p.text for p in content if isinstance(p, TextPart))
    return {**fields, "content": text}


def _named(error: Exception) -> EngineRejected:
    """The refusal of vLLM's error, with the field that it is about."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = next((str(step) for step in first["loc"]), None)
        return EngineRejected(f"{where}: {first['msg']}" if where else first["msg"], param=where)
    return rejected(error)


def _with_call(argument: str | None) -> list[Any]:
    """A chat, and in it a call with this argument, by a function of its name."""
    turns = [{"role": "user", "content": "look"}]
    if argument is None:
        return turns
    function = {"name": f"look_{argument}", "arguments": json.dumps({"at": argument})}
    call = {"id": "call00000", "type": "function", "function": function}
    answer = {"role": "tool", "tool_call_id": "call00000", "name": "look", "content": "seen"}
    return [*turns, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]


def _template(given: str | None) -> str | None:
    if given is not None and given.startswith(PACKAGE_SCHEME):
        given = find_model(given)
    try:
        template: str | None = load_chat_template(given)
    except (OSError, ValueError) as error:
        raise PipelineError(str(error), field="engine_args.chat_template") from error
    return template


def _parser(arguments: VllmArguments, tokenizer: Any, model_config: Any) -> type[Parser] | None:
    for name, known, field in (
        (arguments.tool_call_parser, ToolParserManager, "tool_call_parser"),
        (arguments.engine.get("reasoning_parser"), ReasoningParserManager, "reasoning_parser"),
    ):
        if name and name not in known.list_registered():
            names = ", ".join(sorted(known.list_registered()))
            raise PipelineError(f"vLLM has no such parser; there are {names}", field=f"engine_args.{field}")
    try:
        found: type[Parser] | None = ParserManager.get_parser(
            tool_parser_name=arguments.tool_call_parser,
            reasoning_parser_name=arguments.engine.get("reasoning_parser"),
            enable_auto_tools=arguments.tool_call_parser is not None,
            model_name=model_config.model,
            is_harmony=model_config.hf_config.model_type == "gpt_oss",
            tokenizer=tokenizer,
        )
    except TypeError as error:
        raise PipelineError(str(error), field="engine_args.tool_call_parser") from error
    return found

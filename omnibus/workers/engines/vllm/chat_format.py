"""Chats in vLLM's terms: the options of a request, and the parsers of a stage, which are vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
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
from omnibus.wire.request import ChatOptions, Message, TextPart
from omnibus.workers.engines.protocol import Job
from omnibus.workers.engines.vllm.arguments import VllmArguments
from omnibus.workers.engines.vllm.sampling_params import rejected

_NO_OPTIONS = ChatOptions()


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
        return Chat(parser.adjust_request(self.request), self.params, self.model, self.tokenizer, self.parser)

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


def _template(given: str | None) -> str | None:
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

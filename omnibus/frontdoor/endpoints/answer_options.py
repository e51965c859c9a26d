"""Fields of bodies that ask for more than a text, or for a text of a certain form, and the parameters that they become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.bodies import Body
from omnibus.requests.chat_checks import STRUCTURED
from omnibus.wire.request import ChatOptions

MAX_CHOICES = 128
MAX_TOOLS = 1024
_GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
"""vLLM's older names of constraints."""


class StructuredText(Body):
    """The form that a text must have."""

    response_format: dict[str, Any] | None = None
    """OpenAI's: text, json_object, json_schema; vLLM's: structural_tag."""
    structured_outputs: dict[str, Any] | None = None
    """vLLM's: one of json, regex, choice, grammar, json_object, structural_tag."""
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=-1)] | None = None

    def structured(self) -> dict[str, Any]:
        """Parameters that were given, by vLLM's names; raises InvalidRequest for two forms, and for what a stream cannot hold."""
        given = {name: value for name in self._forms() if (value := getattr(self, name)) is not None}
        if given.get("response_format", {}).get("type") == "text":
            del given["response_format"]
        if len(given) > 1:
            raise InvalidRequest(f"give one of {', '.join(given)}", param=next(iter(given)))
        if self.prompt_logprobs is not None and getattr(self, "stream", None):
            raise InvalidRequest("a stream has no place for them: leave stream out", param="prompt_logprobs")
        params = {name: value for name in ("n", "prompt_logprobs") if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            params[STRUCTURED] = (
                value if name == STRUCTURED else {_GUIDED[name]: value} if name in _GUIDED else _of(value)
            )
        return params

    def structured_field(self) -> str:
        """The caller's name of the form."""
        return next((name for name in self._forms() if getattr(self, name) is not None), STRUCTURED)

    @staticmethod
    def _forms() -> tuple[str, ...]:
        return ("response_format", STRUCTURED, *_GUIDED)


class ChatFields(StructuredText):
    """Options of a chat."""

    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None

    def options(self) -> ChatOptions | None:
        """The options that ask for something; raises InvalidRequest for a choice among no tools."""
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice")
        of_tools = (self.tool_choice, self.parallel_tool_calls) if self.tools else (None, None)
        options = ChatOptions(
            tools=tuple(self.tools) if self.tools else None,
            tool_choice=of_tools[0],
            parallel_tool_calls=of_tools[1],
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs or None,
            add_generation_prompt=None if self.add_generation_prompt is not False else False,
            continue_final_message=self.continue_final_message or None,
            documents=tuple(self.documents) if self.documents else None,
            reasoning_effort=self.reasoning_effort,
            include_reasoning=None if self.include_reasoning is not False else False,
        )
        return None if options == ChatOptions() else options

    def answered(self) -> dict[str, Any]:
        """Parameters of the answer that were given, by vLLM's names; raises InvalidRequest naming the field."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs `logprobs: true`", param="top_logprobs")
        return {**self.structured(), **({"logprobs": self.top_logprobs or 0} if self.logprobs else {})}


def _of(response_format: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's form as vLLM's."""
    match response_format.get("type"):
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            named = response_format.get("json_schema")
            if not isinstance(named, Mapping) or "schema" not in named:
                raise InvalidRequest("json_schema needs a name and a schema", param="response_format")
            return {"json": named["schema"]}
        case "structural_tag":
            return {"structural_tag": json.dumps(response_format)}
    raise InvalidRequest("type is one of text, json_object, json_schema, structural_tag", param="response_format.type")

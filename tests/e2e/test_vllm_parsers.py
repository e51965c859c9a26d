"""Answers read by vLLM's own parsers: the same text and fields however the tokens were cut, so that a later attempt can go on."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import transformers
from packaging.specifiers import SpecifierSet

from omnibus.errors import EngineRejected, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.fields import choices
from omnibus.wire.request import ChatOptions, Message, Request
from omnibus.workers.engines.protocol import EngineInput, TextDelta
from omnibus.workers.engines.vllm.arguments import sort_arguments
from tests.support.byte_llm import make_byte_tokenizer
from tests.support.jobs import make_job

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
MESSAGES = (Message(role="user", content="weather?"),)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLS = (
    'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n</tool_call>'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)
THOUGHT = "<think>\nIt is cold, I think.\n</think>\nIt is cold."


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return make_byte_tokenizer()


def chat_format(tokenizer: Any, **engine_args: Any) -> Any:
    from omnibus.workers.engines.vllm.chat_format import ChatFormat  # noqa: PLC0415 seconds of import

    stage = StageSpec(stage_id=0, name="llm", engine="vllm", model="m", engine_args=engine_args)
    model = SimpleNamespace(model="m", hf_config=SimpleNamespace(model_type="qwen3"), hf_overrides=None)

    def render(turns: Any, params: Any) -> Any:
        return turns, tokenizer.apply_chat_template(turns, **params.get_apply_chat_template_kwargs(), tokenize=False)

    return ChatFormat(sort_arguments(stage), SimpleNamespace(tokenizer=tokenizer, render_messages=render), model)


def job(**options: Any) -> Any:
    request = Request(messages=MESSAGES, chat=ChatOptions(**options) if options else None)
    made = make_job(messages=MESSAGES)
    return SimpleNamespace(
        stage_input=SimpleNamespace(request=request, sources={}), engine_input=EngineInput(messages=MESSAGES),
        sampling=made.sampling,
    )  # fmt: skip


class Read(NamedTuple):
    """An answer, read."""

    text: str
    fields: dict[str, str]
    reason: str | None
    reasoning_tokens: int


def read(tokenizer: Any, chat: Any, text: str, cut: int) -> Read:
    """An answer whose first ten tokens are repeated, and the others come so many at a time."""
    from omnibus.workers.engines.vllm.generated_answer import Answer  # noqa: PLC0415

    ids = tokenizer.encode(text, add_special_tokens=False)
    prompt = tokenizer.encode("user: weather?\nassistant: ")
    answer = Answer("rid", chat.sampling({}), prompt, chat, tokenizer)
    deltas = [answer.repeat(TextDelta(text=tokenizer.decode([one]), token_ids=(one,)), None) for one in ids[:10]]
    for at in range(10, len(ids), cut):
        part = ids[at : at + cut]
        reason = "stop" if at + cut >= len(ids) else None
        made = SimpleNamespace(
            index=0, text=tokenizer.decode(part), token_ids=part, finish_reason=reason, logprobs=None
        )
        deltas.append(answer.read([made]))
    fields: dict[str, str] = {}
    for delta in deltas:
        for name, piece in delta.fields.items():
            fields[name] = fields.get(name, "") + piece
    return Read("".join(delta.text for delta in deltas), fields, answer.reason, answer.reasoning_tokens)


@pytest.mark.parametrize("cut", [1, 2, 7, 1000])
def test_calls_are_the_same_however_their_tokens_come(tokenizer: Any, cut: int) -> None:
    chat = chat_format(tokenizer, tool_call_parser="hermes").of(job(tools=(TOOL,)))
    text, fields, reason, _ = read(tokenizer, chat, CALLS, cut)
    (found,) = choices(text, reason or "", fields)
    assert (found.text.strip(), found.finish_reason) == ("Let me see.", "tool_calls")
    assert [call.function.name for call in found.tool_calls] == ["weather", "weather"]
    assert [call.function.arguments for call in found.tool_calls] == [
        '{"city": "Paris", "days": [1, 2]}',
        '{"city": "Rome"}',
    ]
    assert len({call.id for call in found.tool_calls}) == 2
    assert (text, fields, reason, 0) == read(tokenizer, chat, CALLS, 3)


def test_one_call_is_kept_where_parallel_ones_are_not_wanted(tokenizer: Any) -> None:
    chat = chat_format(tokenizer, tool_call_parser="hermes").of(job(tools=(TOOL,), parallel_tool_calls=False))
    text, fields, *_ = read(tokenizer, chat, CALLS, 5)
    assert len(choices(text, "stop", fields)[0].tool_calls) == 1


@pytest.mark.parametrize("cut", [1, 2, 7, 1000])
@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
def test_reasoning_is_the_same_however_its_tokens_come(tokenizer: Any, parser: str, cut: int) -> None:
    chat = chat_format(tokenizer, reasoning_parser=parser).of(job())
    found = read(tokenizer, chat, THOUGHT, cut)
    assert found.fields["reasoning"].strip() == "It is cold, I think."
    assert (found.text.strip(), found.reason) == ("It is cold.", "stop")
    assert found == read(tokenizer, chat, THOUGHT, 3)


@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
@pytest.mark.parametrize(
    ("text", "thought"),
    [
        (THOUGHT, "\nIt is cold, I think.\n"),
        ("It rains, so\n</think>\nIt is wet.", "It rains, so\n"),  # the prompt has begun it
        ("<think>I had no time to", "I had no time to"),
        ("<think></think>At once.", ""),
    ],
)
def test_tokens_of_the_reasoning_are_counted(tokenizer: Any, parser: str, text: str, thought: str) -> None:
    chat = chat_format(tokenizer, reasoning_parser=parser).of(job())
    expected = len(tokenizer.encode(thought, add_special_tokens=False))
    for cut in (1, 5, 1000):
        found = read(tokenizer, chat, text, cut)
        assert abs(found.reasoning_tokens - expected) <= 2, "line breaks at its ends may belong to its marks"
        assert (found.reasoning_tokens == 0) is (expected == 0)


def test_no_tokens_are_reasoning_without_its_parser(tokenizer: Any) -> None:
    chat = chat_format(tokenizer, tool_call_parser="hermes").of(job(tools=(TOOL,)))
    assert read(tokenizer, chat, THOUGHT, 4).reasoning_tokens == 0


def test_reasoning_is_left_out_where_it_is_not_wanted(tokenizer: Any) -> None:
    chat = chat_format(tokenizer, reasoning_parser="qwen3").of(job(include_reasoning=False))
    text, fields, *_ = read(tokenizer, chat, THOUGHT, 2)
    assert (text.strip(), fields) == ("It is cold.", {})


def test_a_parser_that_is_not_there_is_refused_with_those_that_are(tokenizer: Any) -> None:
    with pytest.raises(PipelineError, match="hermes") as caught:
        chat_format(tokenizer, tool_call_parser="hermez")
    assert caught.value.param == "engine_args.tool_call_parser"
    with pytest.raises(PipelineError, match="deepseek_r1"):
        chat_format(tokenizer, reasoning_parser="deepseek")


def test_arguments_are_an_object_where_a_call_is_asked_for(tokenizer: Any) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        for strict in (None, False):
            tool = {"type": "function", "function": {**TOOL["function"], "strict": strict}}
            chat = chat_format(tokenizer, tool_call_parser="hermes").of(job(tools=(tool,), tool_choice=choice))
            schemas = re.findall(r'"json_schema": (\{.*?\}|true)', chat.request.structured_outputs.structural_tag)
            assert schemas
            assert all(json.loads(schema)["type"] == "object" for schema in schemas)
            assert chat.request.tools[0].function.strict == strict
    free = chat_format(tokenizer, tool_call_parser="hermes").of(job(tools=(TOOL,)))
    assert free.request.structured_outputs is None, "a call of its own accord has no grammar"


def test_versions_that_were_not_tried_are_named_and_those_of_the_package_were() -> None:
    import vllm  # noqa: PLC0415 seconds of import

    from omnibus.workers.engines.vllm.startup import TRIED, untried  # noqa: PLC0415

    assert untried(vllm.__version__) is None
    assert untried(f"{TRIED[-1]}.7rc1+cpu") is None
    for version in ("0.9.1", "0.320.0", "1.0"):
        assert untried(version) == f"vLLM {version} was not tried: the tests passed on {TRIED[0]}.*"
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    (allowed,) = (SpecifierSet(one.removeprefix("vllm")) for one in extras["vllm"])
    minors = [f"0.{minor}" for minor in range(100)]
    assert tuple(minor for minor in minors if f"{minor}.0" in allowed) == TRIED


def test_likely_tokens_have_their_text_where_vllm_gives_none(tokenizer: Any) -> None:
    from omnibus.workers.engines.vllm.generated_answer import Answer  # noqa: PLC0415

    own, other = tokenizer.encode("a!", add_special_tokens=False)
    found = {
        token: SimpleNamespace(decoded_token=None, logprob=-0.5, rank=rank) for rank, token in ((1, own), (2, other))
    }
    answer = Answer("rid", {"logprobs": 2, "prompt_logprobs": 2}, [own], None, tokenizer)
    part = SimpleNamespace(index=0, text="a", token_ids=[own], finish_reason="stop", logprobs=[found])
    fields = answer.read([part], [found]).fields
    entry = json.loads(fields["logprobs"])
    assert [one["token"] for one in (entry, *entry["top_logprobs"])] == ["a", "a", "!"]
    (prompt,) = json.loads(fields["prompt_logprobs"])
    assert [one["decoded_token"] for one in prompt.values()] == ["a", "!"]


def test_tools_are_refused_where_the_template_does_not_show_them(tokenizer: Any) -> None:
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    plain = chat_format(tokenizer, tool_call_parser="hermes", chat_template=template)
    with pytest.raises(EngineRejected, match="does not show tools") as caught:
        plain.of(job(tools=(TOOL,)))
    assert caught.value.param == "tools"
    assert plain.of(job(tools=(TOOL,), tool_choice="none"))
    assert plain.of(job(continue_final_message=True))


def test_tools_are_refused_where_no_parser_is_named(tokenizer: Any) -> None:
    with pytest.raises(EngineRejected) as caught:
        chat_format(tokenizer).of(job(tools=(TOOL,)))
    assert caught.value.param == "tools"
    assert chat_format(tokenizer).of(job()) is None

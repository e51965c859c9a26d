"""vLLM's text surface over HTTP, with the unmodified `openai` package: a tiny random model writes under a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.support.byte_llm import make_byte_llm, make_byte_tokenizer
from tests.support.scraping import Scrape
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
MODEL = "agent"
PIPELINE = """
name: agent
deadline: 200s
stages:
- stage_id: 0
  name: llm
  engine: vllm
  model: {model}
  final_output: true
  final_output_type: text
  slots: 8
  env: {{OMP_NUM_THREADS: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, HF_HUB_OFFLINE: "1"}}
  engine_args: {{max_model_len: 2048, max_num_batched_tokens: 2048, kv_cache_memory_bytes: 67108864, tool_call_parser: hermes,
                 chat_template_kwargs: {{mood: calm}}}}
"""
USER: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
LOOSE: dict[str, Any] = {**WEATHER, "function": {**WEATHER["function"], "strict": False}}
"""Without a grammar of its own, beside which the model may write text."""
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>'
"""The text of a call, as the parser `hermes` reads it."""


class Answer(BaseModel):
    mood: Literal["good", "bad"]
    degrees: Literal[1, 22, 333]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("agent")
    file = folder / "agent.yaml"
    file.write_text(PIPELINE.format(model=make_byte_llm(folder / "model")))
    with serving(str(file), "--port", "0", "--nats-port", "0", state_dir=folder / "state") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120.0) as made:
        yield made


def arguments_of(call: Any) -> dict[str, Any]:
    assert call.type == "function"
    assert call.function.name == "weather"
    found: dict[str, Any] = json.loads(call.function.arguments)
    assert found["city"] in ("Paris", "Rome")
    return found


def test_a_required_tool_is_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=USER,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
        seed=1,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    for call in choice.message.tool_calls:
        arguments_of(call)


@pytest.mark.parametrize("named", [False, True])
def test_arguments_are_an_object_when_nothing_else_binds_them(client: OpenAI, named: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}} if named else "required"
    for seed in range(6):
        answer = client.chat.completions.create(
            model=MODEL, messages=USER, tools=[LOOSE], tool_choice=choice, max_tokens=80, seed=seed, temperature=2.0
        )
        for call in answer.choices[0].message.tool_calls or ():
            assert call.function.arguments.strip()[:1] in ("", "{"), call.function.arguments


def test_a_named_tool_is_called(client: OpenAI) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, tools=[WEATHER], tool_choice=named, max_tokens=400, seed=1
    )
    (call,) = answer.choices[0].message.tool_calls
    arguments_of(call)
    assert answer.choices[0].finish_reason == "stop"


def test_a_call_is_found_in_what_the_model_writes_of_its_own_accord(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, tools=[LOOSE], max_tokens=200, extra_body={"structured_outputs": {"regex": CALL}}
    )
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    arguments_of(call)
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)


async def test_a_streamed_call_comes_in_pieces_that_the_sdk_puts_together(server: Serving) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120.0) as client:
        stream = client.chat.completions.stream(
            model=MODEL, messages=USER, tools=[LOOSE], max_tokens=200, seed=3,
            extra_body={"structured_outputs": {"regex": CALL}},
        )  # fmt: skip
        async with stream as events:
            deltas = [
                call
                async for event in events
                if event.type == "chunk" and event.chunk.choices
                for call in event.chunk.choices[0].delta.tool_calls or ()
            ]
            whole = await events.get_final_completion()
    assert deltas[0].id
    assert deltas[0].function.name == "weather"
    assert all(not delta.id and not delta.function.name for delta in deltas[1:])
    (call,) = whole.choices[0].message.tool_calls
    assert call.id == deltas[0].id
    assert arguments_of(call) == json.loads("".join(delta.function.arguments for delta in deltas))
    assert whole.choices[0].finish_reason == "tool_calls"


def test_turns_of_tools_reach_the_template(client: OpenAI) -> None:
    call = {"id": "call_9", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    turns = [
        *USER, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_9", "content": "22 degrees"},
    ]  # fmt: skip
    short = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=1)
    long = client.chat.completions.create(model=MODEL, messages=turns, tools=[WEATHER], max_tokens=1)
    added = "assistant: [weather call_9]\ntool: 22 degrees[to call_9]\n"
    assert long.usage.prompt_tokens > short.usage.prompt_tokens + len(added) + len(json.dumps(WEATHER)) - 20


def test_a_pydantic_model_is_parsed(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Answer, max_tokens=500, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Answer)


@pytest.mark.parametrize(
    ("form", "is_right"),
    [
        ({"choice": ["left", "right"]}, lambda text: text in ("left", "right")),
        ({"regex": "[a-f]{3}[0-9]"}, lambda text: text[:3].isalpha() and text[3].isdigit() and len(text) == 4),
        ({"grammar": 'root ::= "yes" | "no"'}, lambda text: text in ("yes", "no")),
        ({"json": Answer.model_json_schema()}, Answer.model_validate_json),
    ],
)
def test_a_text_has_the_form_that_is_asked_for(client: OpenAI, form: dict[str, Any], is_right: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=500, seed=1, extra_body={"structured_outputs": form}
    )
    assert is_right(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": BAD_SCHEMA}, "response_format"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}}, "structured_outputs"),
        ({"extra_body": {"guided_grammar": "root ::= nothing_here"}}, "guided_grammar"),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "structured_outputs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 100}, "top_logprobs"),
        ({"extra_body": {"chat_template": "x"}}, "chat_template"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(client: OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=USER, max_tokens=5, **body)
    assert caught.value.param is not None
    assert caught.value.param.split(".")[0] == param, caught.value.message


def test_probabilities_come_with_the_tokens_streamed_and_whole(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": USER, "max_tokens": 8, "temperature": 0.0, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**ask)
    entries = whole.choices[0].logprobs.content
    assert len(entries) == whole.usage.completion_tokens == 8
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)  # greedy: the likeliest
    chunks = list(client.chat.completions.create(**ask, stream=True))
    streamed = [
        entry for chunk in chunks for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


def test_several_choices_are_one_request(client: OpenAI) -> None:
    ask = {"model": MODEL, "messages": USER, "max_tokens": 6, "n": 3, "seed": 7, "temperature": 1.0}
    whole = client.chat.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1
    assert whole.usage.completion_tokens == 18
    streamed = ["", "", ""]
    ends = [None, None, None]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert streamed == texts
    assert ends == ["length"] * 3


def test_an_answer_is_begun_by_the_caller(client: OpenAI) -> None:
    turns = [*USER, {"role": "assistant", "content": "It is"}]
    ask = {"model": MODEL, "max_tokens": 1, "messages": turns}
    plain = client.chat.completions.create(**ask)
    begun = client.chat.completions.create(**ask, extra_body={"continue_final_message": True})
    assert begun.usage.prompt_tokens == plain.usage.prompt_tokens - len("\nassistant: ")


def test_variables_of_the_template_are_the_requests_over_the_stages(client: OpenAI) -> None:
    plain = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=1)
    merry = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=1, extra_body={"chat_template_kwargs": {"mood": "very merry"}}
    )
    assert merry.usage.prompt_tokens - plain.usage.prompt_tokens == len("very merry") - len("calm")


def test_probabilities_of_the_prompt(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=1, extra_body={"prompt_logprobs": 1})
    entries = answer.prompt_logprobs
    assert len(entries) == answer.usage.prompt_tokens
    assert entries[0] is None
    assert all("logprob" in one for entry in entries[1:] for one in entry.values())


def test_a_completion_has_probabilities_choices_and_its_prompt(client: OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "prompt": "Once",
        "max_tokens": 4,
        "n": 2,
        "seed": 5,
        "logprobs": 2,
        "echo": True,
    }
    ask["extra_body"] = {"structured_outputs": {"regex": "[a-z]{4}"}}  # whole characters
    whole = client.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1]
    for choice in whole.choices:
        assert choice.text.startswith("Once")
        found = choice.logprobs
        assert found.tokens[:4] == ["O", "n", "c", "e"]
        assert "".join(found.tokens) == choice.text
        assert found.text_offset == [sum(map(len, found.tokens[:place])) for place in range(len(found.tokens))]
        assert len(found.token_logprobs) == 8
        assert found.token_logprobs[0] is None
        assert all(found.top_logprobs[1:])
    streamed = ["", ""]
    tokens: list[list[str]] = [[], []]
    for chunk in client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
    assert streamed == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]


def test_a_completion_has_the_form_that_is_asked_for(client: OpenAI) -> None:
    form = {"structured_outputs": {"choice": ["yes", "no"]}}
    answer = client.completions.create(model=MODEL, prompt="Is it?", max_tokens=20, extra_body=form)
    assert answer.choices[0].text in ("yes", "no")


@pytest.mark.parametrize("field", ["suffix", "best_of"])
def test_what_a_completion_cannot_do_is_refused_by_name(client: OpenAI, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model=MODEL, prompt="a", max_tokens=1, **{field: {"suffix": "b", "best_of": 2}[field]}
        )
    assert caught.value.param == field


def test_metrics_have_those_of_vllm_when_a_stage_runs_under_it(server: Serving, client: OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=USER, max_tokens=4)
    seen = Scrape.of(f"{server.url}/metrics")
    of_stage = {"process": "llm.0", "model_name": "llm"}
    assert seen.value("vllm:generation_tokens_total", **of_stage) >= 4
    assert seen.value("vllm:time_to_first_token_seconds_count", **of_stage) >= 1
    assert seen.value("omnibus_generation_tokens_total", process="llm.0", stage="0") >= 4


def asked(server: Serving, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}{path}", json={"model": MODEL, **body}, timeout=60.0)
    found: dict[str, Any] = answer.json()
    assert answer.status_code == 200, found
    return found


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_text_becomes_tokens_and_a_text_again(server: Serving, prefix: str) -> None:
    tokenizer, text = make_byte_tokenizer(), "Grüße <think>"
    ids = tokenizer(text).input_ids
    made = asked(server, f"{prefix}/tokenize", prompt=text, return_token_strs=True)
    strings = tokenizer.convert_ids_to_tokens(ids)
    assert made == {"count": len(ids), "max_model_len": 2048, "tokens": ids, "token_strs": strings}
    assert asked(server, f"{prefix}/detokenize", tokens=ids) == {"prompt": text}
    assert asked(server, f"{prefix}/tokenize", prompt="a" * 3000)["count"] == 3000
    assert asked(server, f"{prefix}/tokenize", prompt="")["tokens"] == []
    assert asked(server, f"{prefix}/detokenize", tokens=[]) == {"prompt": ""}


def test_a_chat_has_the_tokens_that_a_request_counts(client: OpenAI, server: Serving) -> None:
    for options in ({}, {"tools": [WEATHER]}, {"chat_template_kwargs": {"mood": "very merry"}}):
        body: dict[str, Any] = dict(options)
        made = asked(server, "/tokenize", messages=USER, **body)
        extra = {"extra_body": {name: body.pop(name) for name in ("chat_template_kwargs",) if name in body}}
        answer = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=1, **body, **extra)
        assert made["count"] == answer.usage.prompt_tokens
    plain = asked(server, "/tokenize", messages=USER)["tokens"]
    assert asked(server, "/detokenize", tokens=plain)["prompt"].endswith(
        "user: What is the weather in Paris?\nassistant: "
    )
    begun = asked(server, "/tokenize", messages=USER, add_generation_prompt=False)["tokens"]
    assert plain[: len(begun)] == begun
    assert len(plain) - len(begun) == len("assistant: ")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [WEATHER]}, 400, "tools"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a" * (1 << 20) + "a"}, 413, "prompt"),
        ("/tokenize", {"prompt": "a", "return_tokens": True}, 400, "return_tokens"),
        ("/tokenize", {"messages": USER, "chat_template": "{{ 1 }}"}, 400, "chat_template"),
        ("/tokenize", {"messages": USER, "mm_processor_kwargs": {"max_pixels": 9}}, 400, "mm_processor_kwargs"),
        ("/detokenize", {"tokens": [1, 1 << 20]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
    ],
)
def test_a_prompt_that_has_no_tokens_is_refused_by_name(
    server: Serving, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"model": MODEL, **body}, timeout=60.0)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_response_calls_a_tool_and_the_next_goes_on_with_its_result(client: OpenAI) -> None:
    more: Any = {"model": MODEL, "tools": [{"type": "function", **WEATHER["function"]}], "parallel_tool_calls": False}
    asked = client.responses.create(
        input="Weather?", tool_choice="required", max_output_tokens=400, extra_body={"seed": 1}, **more
    )
    (call,) = [item for item in asked.output if item.type == "function_call"]
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    given: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "fine"}]
    answer = client.responses.create(
        input=given, previous_response_id=asked.id, tool_choice="none", max_output_tokens=8, **more
    )
    assert answer.usage.input_tokens > asked.usage.input_tokens, "the call and its result are in the prompt"
    assert (answer.usage.output_tokens, answer.incomplete_details.reason) == (8, "max_output_tokens")


def test_a_streamed_response_has_the_form_that_was_asked_for(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="How is it?", text_format=Answer, max_output_tokens=200) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Answer)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="word " * 2000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")

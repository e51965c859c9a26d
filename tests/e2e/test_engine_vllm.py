"""The vLLM engine on a tiny random Qwen3, beside transformers' own computation of the same weights."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import transformers

from omnibus.errors import CheckpointMissing, ContextExceeded, EngineRejected, InvalidRequest, PipelineError
from omnibus.media import pictures
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import FunctionCall, ImagePart, Message, Request, TextPart, ToolCall
from omnibus.workers.engines.protocol import EngineInput, EngineStats, TextDelta
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.greedy import greedy_ids
from tests.support.jobs import make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
LAYERS = [0, 2]
CONTEXT = 128
PROMPT = "draw a red circle"
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> transformers.Qwen3ForCausalLM:
    torch.set_num_threads(1)  # the engines need the cores
    return transformers.Qwen3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    arguments = {"hidden_states": LAYERS}
    engine = VllmEngine(
        StageSpec(stage_id=0, name="llm", engine="vllm", model=str(checkpoint), slots=8, engine_args=arguments)
    )
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def test_deltas_make_up_the_text_when_streaming(engine: VllmEngine, tokenizer) -> None:
    deltas, last = await run_job(engine, make_job(text=PROMPT, sampling=GREEDY))

    assert len(deltas) > 1  # vLLM joins the pieces that come while a busy machine has not read the last one
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == last.outputs["text"]
    assert [token for delta in deltas for token in delta.token_ids] == last.outputs["token_ids"]
    assert last.outputs["text"] == tokenizer.decode(last.outputs["token_ids"], skip_special_tokens=True)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.finish_reason) == (4, 12, "length")


async def test_greedy_tokens_are_those_of_transformers(engine: VllmEngine, reference, tokenizer) -> None:
    prompt = tokenizer.encode(PROMPT)

    _, last = await run_job(engine, make_job(text=PROMPT, sampling=GREEDY))

    assert last.outputs["token_ids"] == greedy_ids(reference, prompt, 12)


async def test_messages_go_through_the_chat_template(engine: VllmEngine, reference, tokenizer) -> None:
    message = Message(role="user", content=(TextPart(text=PROMPT),))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)[
        "input_ids"
    ]

    _, last = await run_job(engine, make_job(messages=(message,), text="ignored", sampling=GREEDY))

    assert last.usage.prompt_tokens == len(prompt)
    assert last.outputs["token_ids"] == greedy_ids(reference, prompt, 12)


async def test_hidden_states_are_those_of_transformers(engine: VllmEngine, reference, tokenizer) -> None:
    prompt = tokenizer.encode(PROMPT)

    _, last = await run_job(engine, make_job(token_ids=prompt, sampling=GREEDY))

    fed = prompt + last.outputs["token_ids"][:-1]
    with torch.no_grad():
        expected = reference(torch.tensor([fed]), output_hidden_states=True).hidden_states
    states = last.outputs["hidden_states"]
    assert (states.shape, states.dtype) == ((len(fed), len(LAYERS), 64), np.float32)
    for place, layer in enumerate(LAYERS):
        np.testing.assert_allclose(states[:, place], expected[layer][0].numpy(), atol=1e-4)


async def test_each_gets_its_own_answer_when_eight_run_at_once(engine: VllmEngine, reference) -> None:
    prompts = [[20 + place, 5, 30 - place] for place in range(8)]
    jobs = [make_job(f"at-once-{place}", GREEDY, token_ids=prompt) for place, prompt in enumerate(prompts)]

    answers = await asyncio.gather(*(run_job(engine, job) for job in jobs))

    assert [last.outputs["token_ids"] for _, last in answers] == [greedy_ids(reference, p, 12) for p in prompts]
    assert engine.stats() == EngineStats(running=0, waiting=0)


async def test_partial_text_comes_back_when_aborted(engine: VllmEngine) -> None:
    job, deltas = make_job("aborted", {**GREEDY, "max_tokens": 110}, text=PROMPT), []
    async for item in engine.generate(job):
        if isinstance(item, TextDelta):
            deltas.append(item)
            await engine.abort("aborted")
        else:
            last = item

    assert last.finish_reason == "abort"
    assert 0 < len(last.outputs["token_ids"]) < 110
    assert last.outputs["text"] == "".join(delta.text for delta in deltas)
    assert "hidden_states" not in last.outputs


async def test_nothing_runs_any_more_when_the_consumer_leaves(engine: VllmEngine) -> None:
    generated = engine.generate(make_job("left", {**GREEDY, "max_tokens": 110}, text=PROMPT))
    await anext(generated)
    assert engine.stats().running == 1

    await generated.aclose()

    assert engine.stats() == EngineStats()
    assert engine._model._llm.get_num_unfinished_requests() == 0


async def test_abort_is_ignored_when_the_id_is_unknown(engine: VllmEngine) -> None:
    await engine.abort("nobody")


async def test_same_tokens_when_the_seed_is_the_same(engine: VllmEngine) -> None:
    async def sampled(seed: int) -> list[int]:
        sampling = {"temperature": 1.0, "seed": seed, "max_tokens": 24, "ignore_eos": True}
        _, last = await run_job(engine, make_job(text=PROMPT, sampling=sampling))
        return last.outputs["token_ids"]

    assert await sampled(3) == await sampled(3)
    assert await sampled(3) != await sampled(4)


async def test_samples_follow_the_distribution_of_the_model(engine: VllmEngine, reference) -> None:
    # vLLM's own kernels repeat the last token in six of ten cases here: see engines.vllm.cpu_kernels.
    prompt = [4, 5, 6]
    with torch.no_grad():
        first = reference(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        second = reference(torch.tensor([[*prompt, token] for token in range(64)])).logits[:, -1].softmax(-1)
    expected = float((first * second.diag()).sum())

    sampling = {"temperature": 1.0, "max_tokens": 2, "ignore_eos": True}
    jobs = [make_job(f"sample-{place}", sampling, token_ids=prompt) for place in range(400)]
    pairs = [last.outputs["token_ids"] for _, last in await asyncio.gather(*(run_job(engine, job) for job in jobs))]

    repeated = sum(one == other for one, other in pairs) / len(pairs)
    assert repeated == pytest.approx(expected, abs=5 * (expected * (1 - expected) / len(pairs)) ** 0.5)


async def test_text_ends_before_the_stop_string(engine: VllmEngine) -> None:
    _, free = await run_job(engine, make_job(text=PROMPT, sampling=GREEDY))
    stop = free.outputs["text"].split()[1]

    deltas, last = await run_job(engine, make_job(text=PROMPT, sampling={**GREEDY, "stop": stop}))

    assert last.finish_reason == "stop"
    assert last.outputs["text"] == free.outputs["text"].partition(stop)[0]
    assert "".join(delta.text for delta in deltas) == last.outputs["text"]


async def test_max_tokens_is_clamped_when_the_context_is_shorter(engine: VllmEngine) -> None:
    _, last = await run_job(engine, make_job(text=PROMPT, sampling={**GREEDY, "max_tokens": 10_000}))

    assert last.usage.prompt_tokens + last.usage.completion_tokens == CONTEXT
    assert last.finish_reason == "length"


WRONG = [
    *[("temperature", float("nan")), ("top_k", -5), ("repetition_penalty", 0.0), ("presence_penalty", 3.0)],
    *[("min_tokens", -1), ("min_p", 0.5), ("logit_bias", {"5": 1}), ("stop", [""]), ("stop_token_ids", [1 << 40])],
    *[("stop_token_ids", [-1]), ("allowed_token_ids", [1 << 20]), ("allowed_token_ids", []), ("bad_words", [""])],
    ("extra_args", [1]),
]
"""Sampling parameters and values that vLLM does not take."""


@pytest.mark.parametrize(
    ("given", "sampling", "param"),
    [
        ({"text": PROMPT}, {"temprature": 1.0}, "temprature"),
        ({"text": PROMPT}, {"temperature": "hot"}, "temperature"),
        ({"text": PROMPT}, {"temperature": -1.0}, "temperature"),
        ({"text": PROMPT}, {"top_p": 2.0}, "top_p"),
        ({"text": PROMPT}, {"max_tokens": 0}, "max_tokens"),
        ({"text": PROMPT}, {"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"text": PROMPT}, {"n": 2}, "n"),
        *(({"text": PROMPT}, {name: value}, name) for name, value in WRONG),
        ({"text": "a " * CONTEXT}, {}, None),
        ({"token_ids": [5] * CONTEXT}, {}, "prompt"),
        ({"token_ids": [5, 64]}, {}, "token_ids"),
        ({"token_ids": [-1]}, {}, "token_ids"),
        ({"token_ids": []}, {}, None),
        ({"embeds": np.zeros((3, 64), np.float32)}, {}, None),
        ({}, {}, "prompt"),
    ],
)
async def test_rejected_naming_the_field_when_the_request_is_wrong(engine: VllmEngine, given, sampling, param) -> None:
    with pytest.raises(EngineRejected) as caught:
        await run_job(engine, make_job(sampling=sampling, **given))

    assert caught.value.http_status == 400
    assert param is None or caught.value.param == param


@pytest.mark.parametrize("given", [{"text": "a " * CONTEXT}, {"text": "a " * 100_000}, {"token_ids": [5] * 500}])
async def test_context_length_is_exceeded_when_the_prompt_is_too_long(
    engine: VllmEngine, given: dict[str, Any]
) -> None:
    with pytest.raises(ContextExceeded) as caught:
        await run_job(engine, make_job(**given))

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


async def test_calls_and_names_of_a_chat_reach_the_template_which_may_refuse_them(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for message in messages %} {{ message.name or 'a' }}{% for call in message.tool_calls or () %}"
        " {{ call.function.arguments.shape }}{% endfor %} {{ message.tool_call_id or '' }}{% endfor %}"
    )
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments='{"shape": "circle"}'))
    turns = (
        Message(role="user", content="x", name="red"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="x", tool_call_id="blue"),
    )
    with monkeypatch.context() as own:
        own.setattr(engine._model._chats, "_shows", {})
        with pytest.raises(EngineRejected, match="does not show calls"):
            await run_job(engine, make_job(messages=turns))
    monkeypatch.setattr(engine._model._llm.renderer.tokenizer, "chat_template", template)
    prompt = await engine._model._prompts.render(EngineInput(messages=turns))
    written = engine._model._llm.renderer.tokenizer.decode(prompt["prompt_token_ids"])
    assert [word for word in ("red", "circle", "blue") if word in written] == ["red", "circle", "blue"]

    monkeypatch.setattr(engine._model._llm.renderer.tokenizer, "chat_template", "{{ raise_exception('no such turn') }}")
    with pytest.raises(EngineRejected, match="no such turn"):
        await run_job(engine, make_job(messages=turns))


async def test_rejected_and_nothing_unpacked_when_the_model_sees_no_pictures(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "opened", pytest.fail)
    message = Message(role="user", content=(TextPart(text=PROMPT), ImagePart(data=b"no image")))
    with pytest.raises(EngineRejected, match="takes no image") as caught:
        await run_job(engine, make_job(messages=(message,)))
    assert caught.value.param == "messages[0].content[1].image"
    assert engine.dead() is None


async def test_rejected_when_the_adapter_is_unknown(engine: VllmEngine) -> None:
    with pytest.raises(EngineRejected, match="no LoRA adapter 'mine'"):
        await run_job(engine, make_job(text=PROMPT, lora="mine"))


async def test_control_methods_answer(engine: VllmEngine) -> None:
    assert await engine.rpc("reset_prefix_cache", [], {}) is True
    assert await engine.rpc("is_sleeping", [], {}) is False


@pytest.mark.parametrize("method", ["shutdown", "sleep", "start_profile", "stop_profile", "no_such_thing"])
async def test_invalid_when_a_control_method_is_not_there(engine: VllmEngine, method: str) -> None:
    with pytest.raises(InvalidRequest, match=method):
        await engine.rpc(method, [], {})


async def test_invalid_when_a_control_method_gets_wrong_arguments(engine: VllmEngine) -> None:
    with pytest.raises(InvalidRequest, match="reset_prefix_cache"):
        await engine.rpc("reset_prefix_cache", [], {"surely": "not"})


class Opened:
    """Opens a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._file), "w")


async def test_nothing_is_unpickled_when_a_control_method_is_given_as_bytes(engine: VllmEngine, tmp_path: Path) -> None:
    code = pickle.dumps(Opened(tmp_path / "run"))
    for args, kwargs in (([code], {}), ([], {"method": code}), ([], {})):
        with pytest.raises(InvalidRequest, match="takes the name of a worker's method"):
            await engine.rpc("collective_rpc", args, kwargs)
    assert not (tmp_path / "run").exists()


async def test_no_files_remain_when_requests_have_ended(engine: VllmEngine) -> None:
    await run_job(engine, make_job("tidy", GREEDY, text=PROMPT))

    folder = engine._model._folder.path
    assert [path.name for path in folder.iterdir() if path.name.startswith("tidy")] == []


async def test_alive_when_nothing_happened(engine: VllmEngine) -> None:
    assert engine.dead() is None


async def test_checkpoint_missing_when_the_folder_is_empty(tmp_path: Path) -> None:
    engine = VllmEngine(StageSpec(stage_id=0, name="none", engine="vllm", model=str(tmp_path)))
    with pytest.raises(CheckpointMissing):
        await engine.start()
    await engine.close()


async def test_argument_is_refused_by_name_before_the_start_when_vllm_has_none_such(checkpoint: Path) -> None:
    with pytest.raises(PipelineError, match=r"engine_args\.warp"):
        VllmEngine(StageSpec(stage_id=0, name="llm", engine="vllm", model=str(checkpoint), engine_args={"warp": 9}))


async def test_vllm_gets_priority_salt_and_what_the_context_leaves(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, seen = engine._model._llm, {}
    generate = llm.generate

    def spy(prompt: Any, params: Any, rid: str, **more: Any) -> Any:
        seen.update(prompt=prompt, params=params, **more)
        return generate(prompt, params, rid, **more)

    monkeypatch.setattr(llm, "generate", spy)
    job = make_job(sampling={"max_tokens": 10_000, "min_tokens": 9_000, "temperature": 0.0}, token_ids=[5, 6, 7])
    salted = dataclasses.replace(
        job,
        priority=3,
        stage_input=dataclasses.replace(job.stage_input, request=Request(prompt="unused", cache_salt="mine")),
    )
    async with aclosing(engine.generate(salted)) as items:
        await anext(items)
    room = llm.model_config.max_model_len - 3
    assert (seen["params"].max_tokens, seen["params"].min_tokens) == (room, room)
    assert seen["priority"] == 3
    assert seen["prompt"]["cache_salt"] == "mine"


async def test_media_arguments_reach_vllms_processor_with_the_prompt(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parity: `mm_processor_kwargs` of a request. vLLM hands this prompt to the model's processor when it holds media."""
    renderer, seen = engine._model._llm.renderer, []
    process = renderer.process_for_engine_async

    def spy(prompt: Any, *more: Any, **named: Any) -> Any:
        seen.append(dict(prompt))
        return process(prompt, *more, **named)

    monkeypatch.setattr(renderer, "process_for_engine_async", spy)
    given = EngineInput(messages=(Message(role="user", content="draw a red circle"),))
    await engine._model._prompts.render(given, {"max_pixels": 64})
    await engine._model._prompts.render(given)
    assert [prompt.get("mm_processor_kwargs") for prompt in seen] == [{"max_pixels": 64}, None]


async def test_media_arguments_are_refused_when_the_first_model_takes_no_media(engine: VllmEngine) -> None:
    job = make_job(token_ids=[5, 6, 7], sampling={"max_tokens": 1})
    asking = dataclasses.replace(job.stage_input, request=Request(prompt="x", mm_processor_kwargs={"max_pixels": 64}))
    with pytest.raises(EngineRejected) as refused:
        await run_job(engine, dataclasses.replace(job, stage_input=asking))
    assert (refused.value.param, refused.value.http_status) == ("mm_processor_kwargs", 400)
    later = dataclasses.replace(asking, sources={"eyes": {"token_ids": [5, 6, 7]}})
    _, last = await run_job(engine, dataclasses.replace(job, stage_input=later))
    assert last.finish_reason == "length", "a later stage passes over what was meant for another"

"""The vLLM engine with an input that comes while it runs: segments that are answered one by one, and parts of one prompt."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from omnibus.errors import ContextExceeded, EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import Message
from omnibus.workers.engines.protocol import (
    EngineInput,
    EngineStats,
    Finished,
    Item,
    Job,
    SegmentEnd,
    TextDelta,
)
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job, run_job
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
GREEDY = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
SAID = [
    EngineInput(text="draw a red circle"),
    EngineInput(text="left of a blue square"),
    EngineInput(token_ids=[4, 5, 6]),
]
TURNS = [
    EngineInput(messages=(Message(role="user", content=words),)) for words in ("draw a red circle", "the blue one")
]


async def started(checkpoint: Path, **arguments: Any) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(
        StageSpec(stage_id=0, name="llm", engine="vllm", model=str(checkpoint), slots=4, engine_args=arguments)
    )
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make_llm(tmp_path_factory.mktemp("llm"), halves=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    async for one in started(checkpoint):
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keeping(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    async for one in started(checkpoint, hidden_states=[0, 2]):
        yield one


class Asked:
    """Calls of AsyncLLM.generate."""

    def __init__(self, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[Any] = []
        llm = engine._model._llm
        generate = llm.generate

        def spy(prompt: Any, params: Any, rid: str, **more: Any) -> Any:
            self.prompts.append(prompt)
            return generate(prompt, params, rid, **more)

        monkeypatch.setattr(llm, "generate", spy)


async def given(parts: Sequence[EngineInput]) -> AsyncGenerator[EngineInput, None]:
    for part in parts:
        yield part


def session(parts: Sequence[EngineInput], sampling: dict[str, Any] = GREEDY, received: Sequence[int] = ()) -> Job:
    job = make_job("session", sampling, parts=given(parts), is_open=True)
    return dataclasses.replace(job, received=tuple(received))


def answers(items: Sequence[Item]) -> list[str]:
    texts = [""]
    for item in items:
        if isinstance(item, SegmentEnd):
            texts.append("")
        else:
            assert isinstance(item, TextDelta)
            texts[-1] += item.text
    assert texts.pop() == ""
    return texts


def middle(last: Finished) -> str:
    """A piece out of the middle of a text."""
    text = last.outputs["text"]
    return str(text[len(text) // 2 - 2 : len(text) // 2 + 2])


async def apart(engine: VllmEngine, sampling: dict[str, Any] = GREEDY) -> list[Finished]:
    """The answers to SAID by one request each, whose prompt is all that came before."""
    context, made = list[int](), []
    for part in SAID:
        ids = part.token_ids or (await engine._model._prompts.render(part))["prompt_token_ids"]
        context += ids
        _, last = await run_job(engine, make_job("apart", sampling, token_ids=context))
        context += last.outputs["token_ids"]
        made.append(last)
    return made


async def test_each_segment_is_answered_after_all_that_came_before_in_one_request_of_vllm(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await apart(engine)
    asked = Asked(engine, monkeypatch)
    items, last = await run_job(engine, session(SAID))
    assert answers(items) == [one.outputs["text"] for one in expected]
    assert last.outputs["token_ids"] == [token for one in expected for token in one.outputs["token_ids"]]
    assert last.outputs["text"] == "".join(answers(items))
    assert last.segments == tuple(np.cumsum([len(text) for text in answers(items)]).tolist())
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4 + 5 + 3, 3 * 8)
    assert len(asked.prompts) == 1
    assert isinstance(asked.prompts[0], AsyncGenerator)


async def test_turns_of_a_chat_go_on_with_the_answers_between_them(engine: VllmEngine) -> None:
    items, _ = await run_job(engine, session(TURNS))
    first, second = answers(items)
    whole = (*TURNS[0].messages, Message(role="assistant", content=first), *TURNS[1].messages)
    _, expected = await run_job(engine, make_job("whole", GREEDY, messages=whole))
    assert second == expected.outputs["text"]


async def test_session_goes_on_behind_a_stop_string(engine: VllmEngine) -> None:
    free = await apart(engine)
    stop = middle(free[0])
    sampling = {**GREEDY, "stop": [stop]}
    items, last = await run_job(engine, session(SAID, sampling))
    assert answers(items) == [one.outputs["text"] for one in await apart(engine, sampling)]
    assert stop not in last.outputs["text"]
    assert engine._model._llm.get_num_unfinished_requests() == 0


@pytest.mark.parametrize("parts", [SAID, TURNS], ids=["texts", "turns"])
async def test_nothing_is_said_twice_when_another_attempt_reads_the_session_again(
    engine: VllmEngine, parts: list[EngineInput]
) -> None:
    items, whole = await run_job(engine, session(parts))
    ids = whole.outputs["token_ids"]
    for cut in range(1, len(ids) + 1):
        again, last = await run_job(engine, session(parts, received=ids[:cut]))
        assert answers(again) == answers(items)
        assert (last.outputs, last.segments, last.usage) == (whole.outputs, whole.segments, whole.usage)


async def test_drawn_answers_go_on_behind_what_was_received(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = {"temperature": 2.0, "max_tokens": 6, "min_tokens": 1}
    items, whole = await run_job(engine, session(SAID, sampling))
    ids = whole.outputs["token_ids"]
    asked = Asked(engine, monkeypatch)
    for cut in range(1, len(ids) + 1):
        again, last = await run_job(engine, session(SAID, sampling, received=ids[:cut]))
        assert last.outputs["token_ids"][:cut] == ids[:cut]
        assert len(answers(again)) == len(SAID)
    assert answers(again) == answers(items)
    assert len(asked.prompts) == len(ids) - 1, "nothing was drawn when all of it was there"


@pytest.mark.parametrize("while_it", ["waits", "writes"])
async def test_partial_text_comes_back_when_a_session_is_aborted(engine: VllmEngine, while_it: str) -> None:
    more = asyncio.Event()

    async def parts() -> AsyncGenerator[EngineInput, None]:
        yield SAID[0]
        if while_it == "waits":
            await more.wait()
        yield SAID[1]
        await more.wait()

    job, items = make_job("aborted", {**GREEDY, "max_tokens": 40}, parts=parts(), is_open=True), list[Item]()
    async for item in engine.generate(job):
        items.append(item)
        after = sum(isinstance(one, SegmentEnd) for one in items)
        if after == 1 and (while_it == "waits" or isinstance(item, TextDelta)):
            await asyncio.gather(engine.abort("aborted"))
    last = items.pop()
    assert isinstance(last, Finished)
    assert last.finish_reason == "abort"
    assert last.outputs["text"] == "".join(item.text for item in items if isinstance(item, TextDelta))
    assert len(last.segments) == 1
    assert (engine.stats(), engine._model._llm.get_num_unfinished_requests()) == (EngineStats(), 0)


async def test_nothing_runs_any_more_when_the_consumer_leaves_a_session(engine: VllmEngine) -> None:
    never = asyncio.Event()

    async def parts() -> AsyncGenerator[EngineInput, None]:
        yield SAID[0]
        await never.wait()

    generated = engine.generate(make_job("left", GREEDY, parts=parts(), is_open=True))
    while not isinstance(await anext(generated), SegmentEnd):
        pass
    waiting = asyncio.create_task(anext(generated))
    await asyncio.wait({waiting}, timeout=0.2)
    waiting.cancel()
    await asyncio.wait({waiting})
    await generated.aclose()
    assert (engine.stats(), engine._model._llm.get_num_unfinished_requests()) == (EngineStats(), 0)


async def test_sessions_run_side_by_side_with_whole_requests(engine: VllmEngine) -> None:
    expected = await apart(engine)
    sessions = [dataclasses.replace(session(SAID), rid=f"session-{number}") for number in range(3)]
    made = await asyncio.gather(
        *(run_job(engine, job) for job in sessions),
        *(run_job(engine, make_job(f"whole-{n}", GREEDY, text="draw a red circle")) for n in range(6)),
    )
    assert all(answers(items) == [one.outputs["text"] for one in expected] for items, _ in made[:3])
    assert all(last.outputs == expected[0].outputs for _, last in made[3:])


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([EngineInput(text="a " * 70), EngineInput(text="a " * 60)], ContextExceeded),
        ([SAID[0], EngineInput(token_ids=[5, 1 << 20])], EngineRejected),
        ([SAID[0], EngineInput(token_ids=[])], EngineRejected),
        ([SAID[0], EngineInput(embeds=np.zeros((2, 64), np.float32))], EngineRejected),
    ],
    ids=["context", "ids", "empty", "embeddings"],
)
async def test_session_is_refused_when_a_segment_cannot_be_taken(
    engine: VllmEngine, parts: list[EngineInput], error: type[Exception]
) -> None:
    sampling = {**GREEDY, "ignore_eos": False, "stop_token_ids": list(range(64))}
    with pytest.raises(error):
        await run_job(engine, session(parts, sampling))
    assert (engine.stats(), engine._model._llm.get_num_unfinished_requests()) == (EngineStats(), 0)


async def test_states_are_those_of_the_whole_session_and_no_files_remain(keeping: VllmEngine) -> None:
    expected = await apart(keeping)
    items, last = await run_job(keeping, session(SAID))
    assert answers(items) == [one.outputs["text"] for one in expected]
    fed = [*last.outputs["token_ids"]]
    assert len(last.outputs["hidden_states"]) == 4 + 5 + 3 + len(fed) - 1
    np.testing.assert_allclose(last.outputs["hidden_states"], expected[-1].outputs["hidden_states"], atol=1e-4)
    folder = keeping._model._folder.path
    assert [path.name for path in folder.iterdir() if "session" in path.name] == []


WORDS = [" draw", " a", " red", " circle", " left", " of", " a", " blue", " square"] * 8
"""Pieces of a text, as a stage before writes it."""


@pytest.mark.parametrize("stop", [None, True])
@pytest.mark.parametrize("kind", ["texts", "ids"])
async def test_parts_make_one_prompt_that_is_computed_while_they_come(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, kind: str, stop: bool | None
) -> None:
    whole = EngineInput(text="".join(WORDS))
    ids = (await engine._model._prompts.render(whole))["prompt_token_ids"]
    _, expected = await run_job(engine, make_job("whole", GREEDY, token_ids=ids))
    sampling = GREEDY
    if stop:
        sampling = {**GREEDY, "stop": [middle(expected)]}
        _, expected = await run_job(engine, make_job("whole", sampling, token_ids=ids))
    asked = Asked(engine, monkeypatch)
    steps, computed = engine.progress(), list[bool]()

    async def parts() -> AsyncGenerator[EngineInput, None]:
        for number in range(len(WORDS)):
            yield EngineInput(text=WORDS[number]) if kind == "texts" else EngineInput(token_ids=[ids[number]])
        computed.append(engine.progress() > steps)

    items, last = await run_job(engine, make_job("parts", sampling, parts=parts()))
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == expected.outputs["text"]
    assert (last.outputs, last.finish_reason) == (expected.outputs, expected.finish_reason)
    assert last.usage.prompt_tokens == len(ids)
    assert computed == [True]
    assert len(asked.prompts) == 1
    await eventually(lambda: engine._model._llm.get_num_unfinished_requests() == 0, 5)


async def test_text_goes_on_behind_what_was_received_when_its_prompt_comes_in_parts(engine: VllmEngine) -> None:
    def job(received: Sequence[int]) -> Job:
        made = make_job("parts", GREEDY, parts=given([EngineInput(text=word) for word in WORDS]))
        return dataclasses.replace(made, received=tuple(received))

    _, whole = await run_job(engine, job(()))
    for cut in range(1, 9):
        _, last = await run_job(engine, job(whole.outputs["token_ids"][:cut]))
        assert (last.outputs, last.usage) == (whole.outputs, whole.usage)


async def test_prompt_without_any_part_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(EngineRejected, match="needs messages, token ids, embeddings or text"):
        await run_job(engine, make_job("none", GREEDY, parts=given([])))


async def test_states_come_with_a_prompt_in_parts(keeping: VllmEngine) -> None:
    _, whole = await run_job(keeping, make_job("whole", GREEDY, text="".join(WORDS)))
    _, last = await run_job(keeping, make_job("parts", GREEDY, parts=given([EngineInput(text=word) for word in WORDS])))
    np.testing.assert_allclose(last.outputs["hidden_states"], whole.outputs["hidden_states"], atol=1e-4)


async def test_nothing_runs_any_more_when_a_prompt_in_parts_is_aborted(engine: VllmEngine) -> None:
    never = asyncio.Event()

    async def parts() -> AsyncGenerator[EngineInput, None]:
        for word in WORDS:
            yield EngineInput(text=word)
        asyncio.get_running_loop().call_later(0.1, lambda: aborting.append(asyncio.create_task(engine.abort("parts"))))
        await never.wait()

    aborting: list[asyncio.Task[None]] = []
    items, last = await run_job(engine, make_job("parts", GREEDY, parts=parts()))
    assert (items, last.finish_reason) == ([], "abort")
    assert (engine.stats(), engine._model._llm.get_num_unfinished_requests()) == (EngineStats(), 0)
    await asyncio.gather(*aborting)


async def test_source_that_fails_ends_the_text_and_frees_the_engine(engine: VllmEngine) -> None:
    async def parts() -> AsyncGenerator[EngineInput, None]:
        for word in WORDS:
            yield EngineInput(text=word)
        raise EngineRejected("no more words")

    async with aclosing(engine.generate(make_job("failed", GREEDY, parts=parts()))) as items:
        with pytest.raises(EngineRejected, match="no more words"):
            await anext(items)
    assert (engine.stats(), engine._model._llm.get_num_unfinished_requests()) == (EngineStats(), 0)

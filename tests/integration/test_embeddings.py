"""Vectors of texts over HTTP, with the unmodified `openai` package."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.front import Front, front

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    stage = StageSpec(
        stage_id=0, name="embedder", engine="python", model="tests.support.embedding_stage:embed", slots=4,
        final_output=True, final_output_type="embedding",
    )  # fmt: skip
    async with front(connection, PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))) as made:
        yield made


async def test_several_inputs_come_back_in_their_order(front_door: Front) -> None:
    texts = ["a" * number for number in range(1, 6)]
    for form in ("float", "base64"):
        made = await front_door.openai.embeddings.create(model=front_door.spec.name, input=texts, encoding_format=form)
        assert [one.index for one in made.data] == [0, 1, 2, 3, 4]
        vectors = [
            np.frombuffer(base64.b64decode(one.embedding), "<f4") if isinstance(one.embedding, str) else one.embedding
            for one in made.data
        ]
        np.testing.assert_array_equal(vectors, [[number, 0, 0] for number in range(1, 6)])


async def test_the_sdks_default_is_read_as_floats(front_door: Front) -> None:
    made = await front_door.openai.embeddings.create(model=front_door.spec.name, input="abca")
    assert made.data[0].embedding == [2.0, 1.0, 1.0]
    assert made.object == "list"


async def test_token_ids_are_an_input_or_several(front_door: Front) -> None:
    one = await front_door.openai.embeddings.create(model=front_door.spec.name, input=[3, 4])
    two = await front_door.openai.embeddings.create(model=front_door.spec.name, input=[[1, 2], [3, 4]])
    assert [item.embedding for item in (*one.data, *two.data)] == [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]


async def test_fewer_dimensions_are_brought_to_length_one(front_door: Front) -> None:
    made = await front_door.openai.embeddings.create(model=front_door.spec.name, input=[3, 4, 100], dimensions=2)
    np.testing.assert_allclose(made.data[0].embedding, [0.6, 0.8], rtol=1e-6)
    with pytest.raises(openai.BadRequestError) as caught:
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=[3, 4], dimensions=3)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("given", ["", [], ["a", ""], ["a", "refuse"], {"text": "a"}])
async def test_an_input_that_cannot_be_served_is_named(front_door: Front, given: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=given)
    assert caught.value.param == "input"


@pytest.mark.parametrize("bounds", [{"max_open_requests": 8}, {"max_open_per_tenant": 8}])
async def test_more_inputs_than_may_be_open_are_refused_before_any_is_submitted(
    connection: Connection, pipeline: str, bounds: dict[str, int]
) -> None:
    stage = StageSpec(
        stage_id=0, name="embedder", engine="python", model="tests.support.embedding_stage:embed", slots=1,
        final_output=True, final_output_type="embedding",
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,), **bounds)
    async with front(connection, spec) as door:
        submitted: list[str] = []
        submit = door.producer.submit

        async def counted(*args: Any, **kwargs: Any) -> Any:
            submitted.append(kwargs["rid"])
            return await submit(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(door.producer, "submit", counted)
            with pytest.raises(openai.BadRequestError, match="has 9 entries, each a request") as caught:
                await door.openai.embeddings.create(model=spec.name, input=["a"] * 9)
            assert caught.value.param == "input"
            assert submitted == []
            made = await door.openai.embeddings.create(model=spec.name, input=["a"] * 8)
            assert len(made.data) == len(submitted) == 8


async def test_inputs_are_submitted_together_and_none_is_left_when_one_is_refused(
    front_door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, cancel = front_door.producer.submit, front_door.producer.cancel
    under_way, most, accepted, cancelled = 0, 0, list[str](), list[str]()

    async def watched(spec: Any, request: Any, *, rid: str, **more: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            made = await submit(spec, request, rid=rid, **more)
        finally:
            under_way -= 1
        accepted.append(rid)
        return made

    async def dropped(name: str, rid: str) -> Any:
        cancelled.append(rid)
        return await cancel(name, rid)

    monkeypatch.setattr(front_door.producer, "submit", watched)
    monkeypatch.setattr(front_door.producer, "cancel", dropped)
    await front_door.openai.embeddings.create(model=front_door.spec.name, input=["a"] * 64)
    assert 1 < most <= 16
    accepted.clear()
    with pytest.raises(openai.BadRequestError):
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=[*["a"] * 40, "", *["a"] * 40])
    assert len(accepted) < 80
    assert sorted(cancelled) == sorted(accepted)


async def test_too_many_inputs_are_counted_in_the_refusal(front_door: Front) -> None:
    with pytest.raises(openai.BadRequestError, match="has 257 entries, and may have 256") as caught:
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=["a"] * 257)
    assert caught.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="has 257 entries, and may have 256"):
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=[[1]] * 257)

"""Vectors of texts over HTTP, with the unmodified `openai` package."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

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


@pytest.mark.parametrize("given", ["", [], ["a", ""], ["a", "refuse"]])
async def test_an_input_that_cannot_be_served_is_named(front_door: Front, given: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=given)
    assert caught.value.param == "input"


async def test_too_many_inputs_are_counted_in_the_refusal(front_door: Front) -> None:
    with pytest.raises(openai.BadRequestError, match="has 257 entries, and may have 256") as caught:
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=["a"] * 257)
    assert caught.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="has 257 entries, and may have 256"):
        await front_door.openai.embeddings.create(model=front_door.spec.name, input=[[1]] * 257)

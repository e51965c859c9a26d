"""Classifier-free guidance away from a negative prompt that omni-tiny's thinker encodes beside the prompt."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from PIL import Image

import omnibus.omni_tiny
from omnibus import Omni
from tools.omni_tiny.grading import grade_image, grade_text
from tools.omni_tiny.training.reference import Reference
from tools.serving import Serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(360)]

PROMPT = "draw a red circle left of a blue square"
NEGATIVE = "a green cross"
SEED = 3
CLOSE = 2
"""Difference of two pixels of one picture, drawn in batches of different sizes."""


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The same models under plain transformers and diffusers."""
    return Reference(Path(omnibus.omni_tiny.__file__).parent / "checkpoints")


@pytest_asyncio.fixture
async def client(omni_tiny: Serving) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{omni_tiny.url}/v1", api_key="any", max_retries=0, timeout=120.0) as made:
        yield made


async def painted(client: AsyncOpenAI, negative: str | None = None, guidance: float = 2.0) -> np.ndarray:
    """A picture of the images route, float (64, 64, 3)."""
    extra = {"negative_prompt": negative, "guidance_scale": guidance, "seed": SEED}
    answer = await client.images.generate(
        model="omni-tiny", prompt=PROMPT, response_format="b64_json",
        extra_body={name: value for name, value in extra.items() if value is not None},
    )  # fmt: skip
    return pixels(base64.b64decode(answer.data[0].b64_json))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def drawn(reference: Reference, negative: str | None, guidance: float = 2.0) -> np.ndarray:
    against = None if negative is None else reference.think(negative)[2]
    states = reference.think(PROMPT)[2]
    sampling = {"num_inference_steps": 12, "guidance_scale": guidance, "height": 64, "width": 64}
    return reference.draw([states], [SEED], against, **sampling)[0].astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


@pytest.mark.parametrize("guidance", [2.0, 4.0])
async def test_picture_is_guided_away_from_the_negative_prompt(
    client: AsyncOpenAI, reference: Reference, guidance: float
) -> None:
    """It is the picture that the bare models draw with the states of that negative prompt, and of no other."""
    served = await painted(client, NEGATIVE, guidance)
    assert differ(served, drawn(reference, NEGATIVE, guidance)) <= CLOSE
    for other in (None, "a red circle"):
        assert differ(served, drawn(reference, other, guidance)) > 20 * CLOSE


async def test_guidance_cancels_when_the_negative_prompt_is_the_prompt(client: AsyncOpenAI) -> None:
    assert differ(await painted(client, PROMPT, 4.0), await painted(client, None, 1.0)) <= CLOSE
    assert differ(await painted(client, None, 4.0), await painted(client, None, 1.0)) > 20 * CLOSE


async def test_nothing_changes_when_a_request_has_no_negative_prompt(client: AsyncOpenAI, reference: Reference) -> None:
    plain = await painted(client)
    assert differ(plain, drawn(reference, None)) <= CLOSE
    assert differ(plain, await painted(client, " ")) <= CLOSE
    assert grade_image(PROMPT, plain.astype(np.uint8))


async def test_each_picture_has_its_own_negative_prompt_when_many_are_drawn_at_once(
    client: AsyncOpenAI, reference: Reference
) -> None:
    negatives = [None, NEGATIVE, "a red circle", "a blue square", "a white triangle above a red cross", None]
    pictures = await asyncio.gather(*(painted(client, negative, 4.0) for negative in negatives))
    for negative, picture in zip(negatives, pictures, strict=True):
        assert differ(picture, drawn(reference, negative, 4.0)) <= CLOSE


async def test_chat_takes_a_negative_prompt_by_stage_and_counts_its_tokens(client: AsyncOpenAI) -> None:
    async def answer(**sampling: object) -> tuple[str, int, np.ndarray]:
        made = await client.chat.completions.create(
            model="omni-tiny", messages=[{"role": "user", "content": PROMPT}], modalities=["text", "image"],
            seed=SEED, extra_body={"sampling_params": {"dit": sampling}},
        )  # fmt: skip
        text, image = made.choices[0].message.content
        picture = pixels(base64.b64decode(image["image_url"]["url"].partition(",")[2]))
        return text["text"], made.usage.prompt_tokens, picture

    text, tokens, picture = await answer(negative_prompt=NEGATIVE)
    plain_text, plain_tokens, plain = await answer()
    assert grade_text(PROMPT, text)
    assert text == plain_text
    assert tokens > plain_tokens
    assert differ(picture, plain) > 20 * CLOSE
    assert differ(picture, await painted(client, NEGATIVE)) <= CLOSE


async def test_prompt_of_a_facade_may_have_a_negative_prompt(client: AsyncOpenAI, omni_tiny: Serving) -> None:
    def generated() -> np.ndarray:
        with Omni("omni-tiny", nats=omni_tiny.nats_url) as omni:
            prompt = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
            (result,) = omni.generate(prompt, [None, {"seed": SEED}, None, None, None], output_modalities=["image"])
            result.raise_for_failure()
            return pixels(result.outputs[0].items[0])

    assert differ(await asyncio.to_thread(generated), await painted(client, NEGATIVE)) <= CLOSE


async def test_text_that_streams_is_the_prompts_alone(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="omni-tiny", messages=[{"role": "user", "content": PROMPT}], stream=True,
        extra_body={"sampling_params": {"dit": {"negative_prompt": NEGATIVE}}},
    )  # fmt: skip
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert grade_text(PROMPT, text)


async def test_refusal_names_the_companion_when_the_negative_prompt_is_too_long(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="companion 'negative'") as caught:
        await painted(client, "a green cross " * 200)
    assert caught.value.code == "context_length_exceeded"


async def test_pictures_are_right_when_other_bundles_were_left_half_way(client: AsyncOpenAI) -> None:
    running = [asyncio.create_task(painted(client, NEGATIVE)) for _ in range(16)]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for one in running[::2]:
        one.cancel()
    pictures = [one for one in await asyncio.gather(*running, return_exceptions=True) if isinstance(one, np.ndarray)]
    assert len(pictures) >= 8
    pictures += await asyncio.gather(*(painted(client, NEGATIVE) for _ in range(8)))
    assert max(differ(one, pictures[0]) for one in pictures) <= CLOSE

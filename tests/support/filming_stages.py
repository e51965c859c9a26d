"""A stage for load that makes a film of its prompt, step by step."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from msgspec.structs import replace

from omnibus.errors import EngineRejected
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import media_parts
from omnibus.workers.engines.protocol import Progress, StageInput
from tests.support.filmed_text import frames_of

STEPS, PAUSE = 5, 0.06
"""Steps of a film, and the seconds of each, where the request says nothing else."""
UNFILMABLE = "nothing"
"""The prompt that is refused in the middle."""


async def film(stage_input: StageInput, sampling: Mapping[str, Any]) -> AsyncIterator[object]:
    """The prompt as a film, with the digest of the picture and the seed that the request has."""
    request = stage_input.request
    words = [request.text(), *(digest_of(part.data) for _, part in media_parts(request.messages or ()))]
    words += [str(sampling["seed"])] if "seed" in sampling else []
    for step in range(1, STEPS + 1):
        await asyncio.sleep(sampling.get("pause", PAUSE))
        yield Progress(step=step, total=STEPS)
        if request.text() == UNFILMABLE:
            raise EngineRejected("nothing cannot be filmed", param="prompt")
    yield {"video": frames_of(" ".join(words)), "fps": 8}


def digest_of(data: bytes) -> str:
    """The word for a picture in a film."""
    return hashlib.sha256(data).hexdigest()[:8]


def films(name: str, **changed: object) -> PipelineSpec:
    """A pipeline of one camera; `changed` are fields of it."""
    camera = StageSpec(
        stage_id=0, name="camera", engine="python", model="tests.support.filming_stages:film", slots=4,
        final_output=True, final_output_type="video", engine_args={"outputs": {"video": "video", "fps": "json"}},
    )  # fmt: skip
    return replace(PipelineSpec(name=name, deadline=30.0, stages=(camera,)), **changed)

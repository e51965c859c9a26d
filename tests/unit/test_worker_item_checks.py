"""What an engine yields is checked against what it declares; the fault is told with the stage's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnibus.errors import EngineError
from omnibus.media import pictures
from omnibus.wire.envelope import TokenUsage
from omnibus.workers.engines.protocol import Chunk, Finished, Item, Progress, TextDelta
from omnibus.workers.item_checks import check_item
from tests.support.device_tensors import CudaTensor

pytestmark = pytest.mark.unit
KINDS = {"text": "text", "ids": "tokens", "states": "tensor", "picture": "image", "more": "json"}
HALF = "\ud83d"


@pytest.mark.parametrize(
    "item",
    [
        TextDelta(text="grün", token_ids=(1, 2)),
        Progress(step=1, total=2, preview=pictures.encoded(np.zeros((2, 2), np.uint8))),
        Chunk(outputs={"ids": (1, 2), "unknown": object()}),
        Finished(outputs={"text": "", "ids": [1, np.int64(2)], "states": np.zeros((2, 3)), "more": {"a": None}}),
        Finished(outputs={"ids": np.arange(3), "states": [[1, 2], [3, 4]], "unknown": object()}),
        Finished(outputs={"states": CudaTensor(np.zeros(3))}),
        Finished(outputs={}, finish_reason="abort", usage=TokenUsage(prompt_tokens=3)),
    ],
)
def test_what_is_declared_passes(item: Item) -> None:
    check_item("say", KINDS, item)


@pytest.mark.parametrize(
    "item",
    [
        TextDelta(text=HALF),
        TextDelta(text=b"x"),  # type: ignore[arg-type]
        TextDelta(text="x", token_ids=("y",)),  # type: ignore[arg-type]
        Progress(step=1.5, total=2),  # type: ignore[arg-type]
        Progress(step=1, total=2, preview="x"),  # type: ignore[arg-type]
        Progress(step=1, total=2, preview=b"x"),
        Chunk(outputs={}),
        Chunk(outputs={"segment_end": True}),
        Chunk(outputs=[1]),  # type: ignore[arg-type]
        Chunk(outputs={"text": f"a{HALF}"}),
        Finished(outputs={"text": ["a"]}),
        Finished(outputs={"text": 5}),
        Finished(outputs={"text": b"caf\xe9"}),
        Finished(outputs={"text": None}),
        Finished(outputs={"text": f"a{HALF}"}),
        Finished(outputs={"ids": "abc"}),
        Finished(outputs={"ids": [1.5]}),
        Finished(outputs={"states": "abc"}),
        Finished(outputs={"states": [[1], [2, 3]]}),
        Finished(outputs={"states": np.array([object()])}),
        Finished(outputs=["text"]),  # type: ignore[arg-type]
        Finished(outputs={1: "text"}),  # type: ignore[dict-item]
        Finished(outputs={}, finish_reason=None),  # type: ignore[arg-type]
        Finished(outputs={}, usage=TokenUsage(prompt_tokens=-1)),
        Finished(outputs={}, usage=TokenUsage(completion_tokens=2**64)),
        "a text by itself",
    ],
)
def test_the_stage_is_named_when_an_item_is_not_what_it_declares(item: Any) -> None:
    with pytest.raises(EngineError, match="stage 'say'"):
        check_item("say", KINDS, item)

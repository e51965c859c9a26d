"""The request that flags of the command line make: a chat for a model that answers chats, else the bare prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnibus.cli.request_flags import RequestFlags
from omnibus.errors import InvalidRequest
from omnibus.pipeline.loading import load_pipeline
from omnibus.wire.request import Message

pytestmark = pytest.mark.unit

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize("pipeline", ["smollm2", "qwen3", "qwen2-5-omni", "omni-tiny"])
def test_prompt_is_a_turn_of_a_chat_when_the_pipeline_starts_at_a_chat_model(pipeline: str) -> None:
    request = RequestFlags().request(load_pipeline(pipeline), QUESTION)
    assert request.messages == (Message(role="user", content=QUESTION),)
    assert request.prompt is None


def test_prompt_is_sent_as_it_is_when_it_is_to_be_continued() -> None:
    request = RequestFlags(complete=True).request(load_pipeline("smollm2"), QUESTION)
    assert (request.prompt, request.messages) == (QUESTION, None)


@pytest.mark.parametrize("pipeline", ["minilm", "flux", "llasa", "qwen-image-encoder"])
def test_prompt_is_sent_as_it_is_when_no_text_answers_it(pipeline: str) -> None:
    request = RequestFlags().request(load_pipeline(pipeline), QUESTION)
    assert (request.prompt, request.messages) == (QUESTION, None)


def test_files_are_refused_when_the_prompt_is_to_be_continued(tmp_path: Path) -> None:
    (tmp_path / "dot.gif").write_bytes(
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    )
    flags = RequestFlags(complete=True, images=(tmp_path / "dot.gif",))
    with pytest.raises(InvalidRequest, match="--complete sends the prompt alone"):
        flags.request(load_pipeline("qwen3-omni"), QUESTION)

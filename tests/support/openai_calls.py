"""The calls of the `openai` package that this server takes, with the route of each, an answer that is right, and a refusal."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai

from omnibus.media import pictures, sound
from omnibus.pipeline.spec import PipelineSpec, StageSpec

WORDS = "a red circle"
CHAT = [{"role": "user", "content": WORDS}]
PICTURE = pictures.encoded(np.zeros((16, 16, 3), np.uint8))
SPOKEN = sound.encoded(np.zeros(4000, np.float32), 8000, "mp3")
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Ids of what was made beforehand; those to delete and to cancel are other ones for each client."""

    model: str
    file: str
    batch: str
    video: str
    spare: Mapping[str, str]


Given = Callable[[Things], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A method of the client."""

    method: str
    route: str
    given: Given
    right: Callable[[Any], object]
    """Whether an answer is right; a stream's is the list of its events."""
    wrong: dict[str, Any] = field(default_factory=dict)
    """What makes a refusal of it; empty where nothing can be wrong."""
    error: type[openai.APIStatusError] = openai.BadRequestError
    param: str | None = None
    code: str = "invalid_request"


def everything(name: str) -> PipelineSpec:
    """A pipeline that delivers every modality that the package asks for, and takes pictures and sound."""
    python: Any = {"engine": "python", "slots": 4, "final_output": True}
    sim: Any = {"engine": "sim", "slots": 4, "final_output": True, "input_sources": (0,)}
    return PipelineSpec(
        name=name,
        deadline=30.0,
        lanes=("interactive", "batch"),
        stages=(
            StageSpec(
                stage_id=0, name="writer", model="tests.support.media_stage:describe_as_asked",
                final_output_type="text", **python,
            ),
            StageSpec(
                stage_id=1, name="painter", final_output_type="image",
                engine_args={"outputs": {"image": "image"}, "steps": 2}, **sim,
            ),
            StageSpec(
                stage_id=2, name="speaker", final_output_type="audio",
                engine_args={"outputs": {"audio": "audio"}, "size": 800}, **sim,
            ),
            StageSpec(
                stage_id=3, name="camera", model="tests.support.filming_stages:film", on_demand=True, final_output_type="video",
                default_sampling_params={"pause": 0.01}, engine_args={"outputs": {"video": "video", "fps": "json"}}, **python,
            ),
            StageSpec(
                stage_id=4, name="embedder", model="tests.support.embedding_stage:embed", on_demand=True,
                final_output_type="embedding", **python,
            ),
        ),
    )  # fmt: skip


def picture() -> tuple[str, io.BytesIO]:
    return "picture.png", io.BytesIO(PICTURE)


def spoken() -> tuple[str, io.BytesIO]:
    return "spoken.mp3", io.BytesIO(SPOKEN)


def unknown(code: str, param: str | None = None, **wrong: Any) -> dict[str, Any]:
    """The refusal of what does not exist."""
    return {"wrong": wrong, "code": code, "param": param or next(iter(wrong)), "error": openai.NotFoundError}


CALLS = (
    Call(
        method="models.list", route="GET /v1/models", given=lambda _: {}, right=lambda page: page.data[0].object == "model",
    ),
    Call(
        method="models.retrieve", route="GET /v1/models/{model:path}", given=lambda made: {"model": made.model},
        right=lambda model: model.owned_by == "omnibus", **unknown("model_not_found", model="nobody"),
    ),
    Call(
        method="chat.completions.create", route="POST /v1/chat/completions",
        given=lambda made: {"model": made.model, "messages": CHAT},
        right=lambda answer: answer.choices[0].message.content == WORDS, wrong={"temperature": -1}, param="temperature",
    ),
    Call(
        method="chat.completions.create", route="POST /v1/chat/completions",
        given=lambda made: {"model": made.model, "messages": CHAT, "stream": True},
        right=lambda chunks: "".join(one.choices[0].delta.content or "" for one in chunks) == WORDS,
        **unknown("model_not_found", model="nobody"),
    ),
    Call(
        method="completions.create", route="POST /v1/completions", given=lambda made: {"model": made.model, "prompt": WORDS},
        right=lambda answer: answer.choices[0].text == WORDS, wrong={"suffix": "!"}, param="suffix",
    ),
    Call(
        method="embeddings.create", route="POST /v1/embeddings", given=lambda made: {"model": made.model, "input": ["ab", "c"]},
        right=lambda answer: [one.embedding for one in answer.data] == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        wrong={"input": []}, param="input", code="empty_prompt",
    ),
    Call(
        method="images.generate", route="POST /v1/images/generations", given=lambda made: {"model": made.model, "prompt": WORDS},
        right=lambda answer: answer.data[0].b64_json, wrong={"size": "huge"}, param="size",
    ),
    Call(
        method="images.generate", route="POST /v1/images/generations",
        given=lambda made: {"model": made.model, "prompt": WORDS, "stream": True},
        right=lambda events: events[-1].type == "image_generation.completed", wrong={"n": 99}, param="n",
    ),
    Call(
        method="images.edit", route="POST /v1/images/edits",
        given=lambda made: {"model": made.model, "prompt": WORDS, "image": picture()},
        right=lambda answer: answer.data[0].b64_json, wrong={"image": ("no.png", b"no picture")}, param="image",
    ),
    Call(
        method="images.create_variation", route="POST /v1/images/variations",
        given=lambda made: {"model": made.model, "image": picture()},
        right=lambda answer: answer.data[0].b64_json, wrong={"n": 99}, param="n",
    ),
    Call(
        method="audio.speech.create", route="POST /v1/audio/speech",
        given=lambda made: {"model": made.model, "voice": "alloy", "input": WORDS, "response_format": "wav"},
        right=lambda answer: answer.content.startswith(b"RIFF"), wrong={"speed": 9}, param="speed",
    ),
    Call(
        method="audio.transcriptions.create", route="POST /v1/audio/transcriptions",
        given=lambda made: {"model": made.model, "file": spoken()},
        right=lambda answer: "audio 0." in answer.text, wrong={"file": ("no.mp3", b"no sound")}, param="file",
    ),
    Call(
        method="audio.translations.create", route="POST /v1/audio/translations",
        given=lambda made: {"model": made.model, "file": spoken()},
        right=lambda answer: "audio 0." in answer.text, wrong={"response_format": "pdf"}, param="response_format",
    ),
    Call(
        method="files.create", route="POST /v1/files", given=lambda _: {"file": ("a.txt", b"hello"), "purpose": "user_data"},
        right=lambda file: (file.bytes, file.filename) == (5, "a.txt"), wrong={"purpose": "fun"}, param="purpose",
    ),
    Call(
        method="files.list", route="GET /v1/files", given=lambda _: {"purpose": "batch"},
        right=lambda page: {one.purpose for one in page.data} == {"batch"}, wrong={"order": "up"}, param="order",
    ),
    Call(
        method="files.retrieve", route="GET /v1/files/{file_id}", given=lambda made: {"file_id": made.file},
        right=lambda file: file.filename == "in.jsonl", **unknown("file_not_found", file_id="file-none"),
    ),
    Call(
        method="files.content", route="GET /v1/files/{file_id}/content", given=lambda made: {"file_id": made.file},
        right=lambda answer: answer.content == LINE, **unknown("file_not_found", file_id="file-none"),
    ),
    Call(
        method="files.delete", route="DELETE /v1/files/{file_id}", given=lambda made: {"file_id": made.spare["file"]},
        right=lambda gone: gone.deleted, **unknown("file_not_found", file_id="file-none"),
    ),
    Call(
        method="batches.create", route="POST /v1/batches",
        given=lambda made: {"input_file_id": made.file, "endpoint": "/v1/completions", "completion_window": "24h"},
        right=lambda batch: batch.status == "validating",
        wrong={"input_file_id": "file-none"}, param="input_file_id",
    ),
    Call(
        method="batches.list", route="GET /v1/batches", given=lambda _: {"limit": 5},
        right=lambda page: page.data[0].object == "batch", wrong={"limit": 0}, param="limit",
    ),
    Call(
        method="batches.retrieve", route="GET /v1/batches/{batch_id}", given=lambda made: {"batch_id": made.batch},
        right=lambda batch: batch.endpoint == "/v1/chat/completions", **unknown("batch_not_found", batch_id="batch_none"),
    ),
    Call(
        method="batches.cancel", route="POST /v1/batches/{batch_id}/cancel", given=lambda made: {"batch_id": made.spare["batch"]},
        right=lambda batch: batch.status in ("cancelling", "cancelled"), **unknown("batch_not_found", batch_id="batch_none"),
    ),
    Call(
        method="videos.create", route="POST /v1/videos", given=lambda made: {"model": made.model, "prompt": WORDS},
        right=lambda video: video.status == "queued", wrong={"size": "huge"}, param="size",
    ),
    Call(
        method="videos.list", route="GET /v1/videos", given=lambda _: {"limit": 5},
        right=lambda page: page.data[0].object == "video", wrong={"order": "up"}, param="order",
    ),
    Call(
        method="videos.retrieve", route="GET /v1/videos/{video_id}", given=lambda made: {"video_id": made.video},
        right=lambda video: video.status == "completed", **unknown("video_not_found", video_id="video_none"),
    ),
    Call(
        method="videos.download_content", route="GET /v1/videos/{video_id}/content", given=lambda made: {"video_id": made.video},
        right=lambda answer: b"ftyp" in answer.content[:16], **unknown("video_not_found", video_id="video_none"),
    ),
    Call(
        method="videos.remix", route="POST /v1/videos/{video_id}/remix",
        given=lambda made: {"video_id": made.video, "prompt": "a blue one"},
        right=lambda video: video.remixed_from_video_id, **unknown("video_not_found", video_id="video_none"),
    ),
    Call(
        method="videos.delete", route="DELETE /v1/videos/{video_id}", given=lambda made: {"video_id": made.spare["video"]},
        right=lambda gone: gone.deleted, **unknown("video_not_found", video_id="video_none"),
    ),
)  # fmt: skip

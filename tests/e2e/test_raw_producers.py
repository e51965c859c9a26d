"""omni-tiny asked on the subject itself, without a client of ours: from Python and from Node; read back over HTTP."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from omnibus.broker.connection import connect
from omnibus.wire import subjects
from tests.support.node import ask_from_node, install_client
from tests.support.waiting import eventually
from tools.omni_tiny.grading import grade_audio, grade_image, grade_text
from tools.serving import Serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(360)]

PIPELINE = "omni-tiny"
PROMPT = "draw a green triangle above a red circle"
SEEDED = {"dit": {"seed": 1}}


async def ended(http: httpx.AsyncClient, rid: str) -> dict[str, Any] | None:
    """The request as the front door shows it, once it has ended."""
    answer = await http.get(f"/v1/requests/{rid}")
    if answer.status_code == 404 or answer.json()["status"] == "open":
        return None
    record: dict[str, Any] = answer.json()
    return record


async def test_a_json_message_on_the_subject_is_answered_and_readable_over_http(omni_tiny: Serving) -> None:
    rid = f"raw-{uuid.uuid4().hex[:8]}"
    asked = {"prompt": PROMPT, "modalities": ["text", "image", "audio"], "sampling_params": SEEDED}
    body = json.dumps(asked).encode()
    async with connect(omni_tiny.nats_url, name="raw-producer") as connection:
        await connection.js_publish(subjects.request(PIPELINE, rid), body)
    async with httpx.AsyncClient(base_url=omni_tiny.url) as http:
        record = await eventually(lambda: ended(http, rid), timeout=60.0, what="the raw request's end")
    assert record is not None
    assert record["status"] == "done", record["error"]
    items = {output["modality"]: output["items"][0] for output in record["outputs"]}
    assert grade_text(PROMPT, items["text"]["text"])
    assert grade_image(PROMPT, base64.b64decode(items["image"]["data"]))
    assert grade_audio(PROMPT, base64.b64decode(items["audio"]["data"]))


async def test_an_invalid_message_on_the_subject_ends_as_a_typed_failure(omni_tiny: Serving) -> None:
    bad = {f"bad-{uuid.uuid4().hex[:8]}": body for body in (b"{", b'{"prompt": "x", "modalities": ["smell"]}')}
    async with connect(omni_tiny.nats_url, name="raw-producer") as connection:
        for rid, body in bad.items():
            await connection.js_publish(subjects.request(PIPELINE, rid), body)
    async with httpx.AsyncClient(base_url=omni_tiny.url) as http:
        records = [await eventually(lambda rid=rid: ended(http, rid), timeout=30.0) for rid in bad]
    assert [record["status"] for record in records if record] == ["failed", "failed"]
    assert [record["error"]["code"] for record in records if record] == ["invalid_request", "unsupported_modality"]


def test_node_asks_and_gets_everything_right(omni_tiny: Serving, tmp_path: Path) -> None:
    client = install_client(tmp_path)
    options = ("--out", str(tmp_path), "--sampling", json.dumps(SEEDED))
    asked = ask_from_node(client, PROMPT, *options, nats=omni_tiny.nats_url, pipeline=PIPELINE)
    assert asked.returncode == 0, asked.stderr
    assert grade_text(PROMPT, asked.stdout)
    (image,), (audio,) = tmp_path.glob("image-*.png"), tmp_path.glob("audio-*.wav")
    assert grade_image(PROMPT, image.read_bytes())
    assert grade_audio(PROMPT, audio.read_bytes())

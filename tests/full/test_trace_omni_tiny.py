"""One request to omni-tiny, whose payloads fit into messages, as its processes export it: one root, and each stage and wait."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.otlp import collector
from tools.serving import serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ("thinker", "dit", "talker", "code2wav")
CHAT = {
    "messages": [{"role": "user", "content": "Draw and say: a red circle"}],
    "modalities": ["text", "image", "audio"],
}


def test_request_for_text_picture_and_sound_is_one_tree_from_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        with serving("omni-tiny", "--port", "0", "--nats-port", "0", state_dir=tmp_path / "state") as served:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            answer = httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=120.0)
            assert answer.status_code == 200, answer.text
        root, children = received.tree(TRACE, outside=SPAN)  # all is exported when the processes have ended
        assert root.name == "POST /v1/chat/completions"
        by_name = {one.name: one for one in children[root.span]}
        assert {f"{what} {stage}" for what in ("receive", "process") for stage in STAGES} <= by_name.keys()
        assert {one.service for one in received.of(TRACE)} == {
            "omnibus-frontdoor",
            "omnibus-orchestrator",
            "omnibus-worker",
        }
        for stage in STAGES:
            ran = by_name[f"process {stage}"]
            assert ran.attributes["omnibus.request_id"] == answer.headers["x-request-id"]
            assert ran.start >= root.start - 0.05
            assert by_name[f"receive {stage}"].end <= ran.start + 0.05

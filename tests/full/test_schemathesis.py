"""schemathesis asks a front door what its OpenAPI document allows, and what it does not: every check, every route."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from omnibus.broker.connection import Connection
from tests.support.cached_venv import bare_environment, cached_venv
from tests.support.front import front
from tests.support.openai_calls import everything

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
CONFIG = Path(__file__).parents[1] / "support" / "clients" / "schemathesis.toml"
STANDSTILL = "^/(pause|v1/omni/sleep|v1/replicas)"
"""Routes after which no stage works any more."""
ROUTES_THAT_RUN = "^/v1/(chat|completions|embeddings|images|audio|videos$)"


@pytest.mark.parametrize(
    "flags",
    [
        ("--exclude-path-regex", STANDSTILL, "--max-examples", "2", "--max-time", "45"),
        ("--include-path-regex", STANDSTILL, "--max-examples", "2", "--max-time", "15"),
        (
            "--include-path-regex",
            ROUTES_THAT_RUN,
            "--mode",
            "positive",
            "--max-examples",
            "12",
            "--max-time",
            "30",
            "--phases",
            "fuzzing",
        ),
    ],
    ids=["whatever", "standstill", "what-runs"],
)
async def test_nothing_is_found(connection: Connection, pipeline: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    schemathesis = cached_venv("schemathesis", ("schemathesis==4.32.5",)).parent / "schemathesis"
    file, report = tmp_path / "openapi.json", tmp_path / "report.json"
    async with front(connection, everything(pipeline), batches=True, videos=True) as door:
        document = (await door.http.get("/openapi.json")).json()
        file.write_text(json.dumps(narrowed(document) if "positive" in flags else document))
        words = (
            schemathesis, "--config-file", CONFIG, "run", file, "--url", door.server.url, "--checks", "all", "--seed", "1",
            "--request-timeout", "20", "--report-json-path", report, *flags,
        )  # fmt: skip
        done = await asyncio.to_thread(
            subprocess.run,
            words,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=bare_environment(),
            check=False,
        )
        answered = await answered_well(door.http)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "positive" not in flags or answered > 5, "requests were refused, and none ran"


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the name of a model, which nobody can guess, and without fields that are not in it."""
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Body"):
            schema["additionalProperties"] = False
            schema["properties"].pop("model", None)
    return document


async def answered_well(http: httpx.AsyncClient) -> float:
    """Requests that the routes for inference have answered with 200."""
    lines = (await http.get("/metrics")).text.splitlines()
    runs = [line for line in lines if line.startswith("omnibus_http_requests_total") and 'status="200"' in line]
    return sum(
        float(line.rpartition(" ")[2])
        for line in runs
        if any(f'"/v1/{one}' in line for one in ("chat", "compl", "em", "im", "au"))
    )

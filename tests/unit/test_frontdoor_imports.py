"""Libraries that a front door must not load at its start: each costs memory in every process, for few requests."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

NEEDED_LATER = {
    "av",
    "PIL",
    "torch",
    "vllm",
    "transformers",
    "diffusers",
    "grpc",
    "opentelemetry",
    "aiohttp",
    "matplotlib",
}
START = """
import inspect, sys
from omnibus.cli import frontdoor, root
for line in inspect.getsource(frontdoor).splitlines():
    if line.startswith("    from omnibus") and "front_doors" not in line:
        exec(line.strip())
create_app(None, None, replicas=None, connected=None)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_front_door_starts_without_the_libraries_of_files_and_models() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert {"uvicorn", "fastapi", "omnibus"} <= loaded
    assert loaded & NEEDED_LATER == set()

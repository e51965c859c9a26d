"""Processes that serve import nothing that they do not use: memory counts once a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("part", "spared"),
    [
        ("omnibus.cli.launch", ("aiohttp", "cryptography", "nkeys")),
        ("omnibus.cli.process_group", ("numpy",)),
        ("omnibus.orchestrator.service", ("numpy",)),
        ("omnibus.orchestrator.deployed", ("aiohttp", "nkeys", "fastapi", "yaml")),
        ("omnibus.workers.replica_main", ("aiohttp", "nkeys", "fastapi", "rich", "numpy")),
        ("omnibus.workers.engines.python", ("numpy",)),
        ("omnibus.cli.root", ("rich",)),
        (
            "omnibus.frontdoor.app",
            ("aiohttp", "nkeys", "av", "PIL", "torch", "transformers", "grpc", "opentelemetry", "numpy"),
        ),
    ],
)
def test_process_leaves_out_what_it_does_not_use_when_it_starts(part: str, spared: tuple[str, ...]) -> None:
    code = f"import sys, {part}; print(*[name for name in {spared} if name in sys.modules])"
    done = subprocess.run((sys.executable, "-c", code), check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.split() == []

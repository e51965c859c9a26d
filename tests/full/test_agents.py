"""What agents need of a model, on the real small one: with LangChain and pydantic-ai, unmodified, in a venv of their own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
PACKAGES = ("langchain-openai==1.7.4", "pydantic-ai-slim[openai]==2.68.0")
SCRIPT = Path(__file__).parents[1] / "support" / "agents_script.py"


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of a venv with the packages, made once into the user's cache."""
    name = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    venv = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "omnibus-tests", f"agents-{name}")
    interpreter = venv / "bin" / "python"
    if not (venv / "complete").exists():
        shutil.rmtree(venv, ignore_errors=True)
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert uv is not None, "install the extra dev, which brings uv"
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, venv], check=True, timeout=120)
        subprocess.run([uv, "pip", "install", "-q", "--python", interpreter, *PACKAGES], check=True, timeout=600)
        (venv / "complete").touch()
    return interpreter


@pytest.fixture(scope="module")
def smollm2(scratch: Path) -> Iterator[Serving]:
    with serving("smollm2", "--port", "0", "--nats-port", "0", state_dir=scratch / "agents", timeout=800.0) as served:
        yield served


@pytest.fixture(scope="module")
def found(python: Path, smollm2: Serving) -> dict[str, Any]:
    """What the script saw, which raises by itself where a package cannot read an answer."""
    command = [python, SCRIPT, f"{smollm2.url}/v1", "smollm2"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_langchain_calls_tools_whole_and_streamed(found: dict[str, Any]) -> None:
    seen = found["langchain"]
    for calls in (seen["calls"], seen["streamed"]):
        (call,) = calls
        assert call["name"] == "weather"
        assert call["args"]["city"] in ("Paris", "Rome")
        assert call["id"]
    assert seen["pieces"] > 2
    assert seen["after"]


def test_langchain_reads_structured_output_probabilities_and_choices(found: dict[str, Any]) -> None:
    seen = found["langchain"]
    assert set(seen["parsed"]) == {"name", "country"}
    assert seen["logprobs"] == seen["tokens"] > 0
    assert seen["choices"] == 2


def test_pydantic_ai_reads_structured_output_by_a_tool_and_by_a_form(found: dict[str, Any]) -> None:
    seen = found["pydantic_ai"]
    assert set(seen["by_tool"]) == set(seen["native"]) == {"name", "country"}
    assert "Paris" in seen["text"]

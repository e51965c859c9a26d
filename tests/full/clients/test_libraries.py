"""Libraries that people point at such a server, unmodified, in environments of their own, and the examples of each."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.cached_venv import bare_environment, cached_venv

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "tests" / "support" / "clients"
EXAMPLES = ROOT / "examples" / "clients"
PACKAGES = {
    "clients": ("litellm==1.110.2", "langchain-openai==1.7.4", "pydantic-ai-slim[openai]==2.68.0", "openai-agents==0.24.0",
                "llm==0.36"),
    "earlier": ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0", "instructor==1.17.0"),
}  # fmt: skip
"""Pinned. Those of `earlier` want an older `openai` than the others."""
HOMES = {
    **dict.fromkeys(("litellm", "langchain", "pydantic_ai", "openai_agents", "llm"), "clients"),
    **dict.fromkeys(("llama_index", "instructor"), "earlier"),
}
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""LiteLLM asks no other host for prices."""
SHAPES = "red circle left blue square"


def python_of(library: str) -> Path:
    home = HOMES[library]
    return cached_venv(home, PACKAGES[home])


def run(*words: str | Path, **env: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, env=bare_environment(**QUIET, **env), check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def seen(library: str, url: str) -> dict[str, Any]:
    """What the script of a library saw, which raises by itself where that cannot read an answer."""
    found: dict[str, Any] = json.loads(run(python_of(library), SCRIPTS / f"{library}_client.py", url).splitlines()[-1])
    return found


def test_litellm(url: str) -> None:
    found = seen("litellm", url)
    text, other = found["text"], found["other"]
    assert "Paris" in text["whole"]
    assert text["whole"] == text["streamed"] == text["async"] == text["batch"][0] == text["batch"][1]
    assert text["usage"] > text["tokens"] > 0
    assert text["call"]["city"] in ("Paris", "Rome")
    assert text["form"]["name"] in ("Paris", "Rome")
    assert text["logprobs"] == text["tokens"]
    assert "Paris" in text["continued"]
    assert (text["refused"], text["unknown"]) == ("BadRequestError", "NotFoundError")
    assert other["vectors"] == [384, 384]
    assert other["picture"] == "89504e47"
    assert other["speech"] == other["sound"] == "RIFF"
    assert other["said"] == SHAPES


def test_langchain(url: str) -> None:
    found = seen("langchain", url)
    text, other = found["text"], found["other"]
    for calls in (text["calls"], text["streamed"]):
        (call,) = calls
        assert call["name"] == "weather"
        assert call["args"]["city"] in ("Paris", "Rome")
        assert call["id"]
    assert text["pieces"] > 2
    assert text["after"]
    assert set(text["parsed"]) == {"name", "country"}
    assert text["logprobs"] == text["tokens"] > 0
    assert text["choices"] == 2
    assert "Paris" in text["async"]
    assert "Paris" in text["continued"]
    assert other == {"vectors": [384, 384], "said": SHAPES, "sound": "RIFF", "parts": ["text", "image_url"]}


def test_pydantic_ai(url: str) -> None:
    found = seen("pydantic_ai", url)
    text = found["text"]
    assert set(text["by_tool"]) == set(text["native"]) == {"name", "country"}
    assert "Paris" in text["text"]
    assert text["streamed"] == text["text"]
    assert text["pieces"] > 2
    assert text["tokens"] > 0
    assert found["other"]["said"] == SHAPES


def test_openai_agents(url: str) -> None:
    found = seen("openai_agents", url)
    text = found["text"]
    assert "Paris" in text["text"]
    assert text["streamed"] == text["text"]
    assert text["deltas"] > 2
    assert text["tokens"] > 0
    assert text["tool"].startswith("22 degrees in ")
    assert set(text["object"]) == {"name", "country"}
    assert found["other"]["said"] == SHAPES


def test_llama_index(url: str) -> None:
    found = seen("llama_index", url)
    text, other = found["text"], found["other"]
    assert "Paris" in text["whole"]
    assert text["whole"] == text["streamed"] == text["async"]
    assert "Paris" in text["continued"]
    assert text["continued"] == text["streamed_on"]
    assert text["tool"].startswith("22 degrees in ")
    assert set(text["object"]) == {"name", "country"}
    assert other == {"vectors": [384, 384], "said": SHAPES}


def test_instructor(url: str) -> None:
    text = seen("instructor", url)["text"]
    for form in ("schema", "partial", "async"):
        assert set(text[form]) == {"name", "country"}, form
    assert text["tokens"] > 0
    assert text["pieces"] > 1


def test_llm_command(url: str, tmp_path: Path) -> None:
    llm = python_of("llm").parent / "llm"
    env = {"LLM_USER_PATH": str(tmp_path)}
    models = [{"model_id": name, "model_name": name, "api_base": url, "supports_tools": True, "supports_schema": True}
              for name in ("smollm2", "omni-tiny")]  # fmt: skip
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "tools.py").write_text(
        'def weather(city: str) -> str:\n    "The weather in a city."\n    return "22 degrees"\n'
    )
    ask = (llm, "-m", "smollm2", "-o", "temperature", "0", "-o", "max_tokens", "60")
    question = "What is the capital of France?"
    assert "Paris" in run(*ask, question, **env)
    assert run(*ask, "--no-stream", question, **env) == run(*ask, question, **env)
    assert json.loads(run(*ask, "--schema", "name, country", "Where is the Eiffel tower?", **env)).keys() == {
        "name",
        "country",
    }
    assert run(*ask, "-c", "And of Italy?", **env)  # the conversation goes on
    assert run(*ask, "--functions", (tmp_path / "tools.py").read_text(), "What is the weather in Paris?", **env)
    assert run(llm, "-m", "omni-tiny", "a red circle left of a blue square", **env).strip() == SHAPES


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("with_*")), ids=lambda file: file.stem)
def test_example(example: Path, url: str, tmp_path: Path) -> None:
    library = example.stem.removeprefix("with_")
    python = python_of(library)
    path = f"{python.parent}:/usr/bin:/bin"
    said = run(
        "sh" if example.suffix == ".sh" else python, example, "smollm2", url, PATH=path, LLM_USER_PATH=str(tmp_path)
    )
    assert "Paris" in said


def test_every_library_has_an_example() -> None:
    assert {file.stem.removeprefix("with_") for file in EXAMPLES.glob("with_*")} == set(HOMES)

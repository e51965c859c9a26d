"""LoRA adapters that are added to a running vLLM pipeline over HTTP, and outlive its replica."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers

from tests.support.byte_llm import make_byte_llm
from tests.support.processes import children_of
from tests.support.tiny_adapter import make_adapter
from tools.serving import Serving, serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(500),
    # torch and transformers use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PIPELINE = """
name: writer
deadline: 200s
stages:
- stage_id: 0
  name: llm
  engine: vllm
  model: {folder}/model
  final_output: true
  final_output_type: text
  slots: 4
  env: {{OMP_NUM_THREADS: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, HF_HUB_OFFLINE: "1"}}
  engine_args: {{max_model_len: 256, max_num_batched_tokens: 256, kv_cache_memory_bytes: 67108864, enable_lora: true,
                 max_loras: 2, lora_modules: {{declared: {folder}/declared}}}}
"""
ASK = {"prompt": "Once upon", "max_tokens": 24, "seed": 3, "ignore_eos": True, "skip_special_tokens": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("writer")
    base = transformers.Qwen3ForCausalLM.from_pretrained(make_byte_llm(made / "model"))
    for seed, name in enumerate(("declared", "pirate", "poet")):
        make_adapter(made / name, base, seed=seed)
    (made / "writer.yaml").write_text(PIPELINE.format(folder=made))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with serving(str(folder / "writer.yaml"), "--port", "0", "--nats-port", "0", state_dir=folder / "state") as running:
        yield running


def post(server: Serving, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=150.0)


def text(server: Serving, model: str) -> str:
    answer = post(server, "/v1/completions", model=model, **ASK)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    written: str = answer.json()["choices"][0]["text"]
    return written


def models(server: Serving) -> dict[str, str | None]:
    listed = httpx.get(f"{server.url}/v1/models", timeout=30.0).json()["data"]
    return {one["id"]: one["parent"] for one in listed}


def replica_of(server: Serving) -> int | None:
    """The process of the only replica."""
    return next(iter(children_of(server.pid, "omnibus.workers.replica_main")), None)


def test_an_adapter_is_added_at_run_time_and_outlives_its_replica(server: Serving, folder: Path) -> None:
    assert models(server) == {"writer": None, "writer:declared": "writer"}
    unknown = post(server, "/v1/completions", model="writer:pirate", **ASK)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    plain, declared = text(server, "writer"), text(server, "writer:declared")

    added = post(server, "/v1/load_lora_adapter", lora_name="pirate", lora_path=str(folder / "pirate"))
    assert (added.status_code, added.text) == (200, "Success: LoRA adapter 'pirate' added successfully.")
    pirate = text(server, "writer:pirate")
    assert len({plain, declared, pirate}) == 3
    assert models(server) == {"writer": None, "writer:declared": "writer", "writer:pirate": "writer"}
    assert (text(server, "writer"), text(server, "writer:declared")) == (plain, declared)

    replica = replica_of(server)
    assert replica is not None
    os.kill(replica, signal.SIGKILL)
    assert text(server, "writer:pirate") == pirate  # it waits for the next one
    assert replica_of(server) not in (None, replica)

    twice = post(server, "/v1/load_lora_adapter", lora_name="pirate", lora_path=str(folder / "pirate"))
    assert twice.status_code == 200, twice.text
    other = post(server, "/v1/load_lora_adapter", lora_name="pirate", lora_path=str(folder / "poet"))
    assert (other.status_code, other.json()["error"]["param"]) == (400, "lora_name")
    assert text(server, "writer:pirate") == pirate
    replaced = post(
        server, "/v1/load_lora_adapter", lora_name="pirate", lora_path=str(folder / "poet"), load_inplace=True
    )
    assert replaced.status_code == 200, replaced.text
    assert text(server, "writer:pirate") not in (plain, declared, pirate)

    gone = post(server, "/v1/unload_lora_adapter", lora_name="pirate")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'pirate' removed successfully.")
    assert post(server, "/v1/completions", model="writer:pirate", **ASK).status_code == 404
    assert text(server, "writer") == plain


def test_an_added_adapter_is_there_when_everything_starts_again(folder: Path) -> None:
    def started() -> AbstractContextManager[Serving]:
        file = str(folder / "writer.yaml")
        return serving(file, "--port", "0", "--nats-port", "0", state_dir=folder / "again")

    with started() as first:
        for name in ("pirate", "declared"):  # the second one in the place of that of the file
            added = post(
                first, "/v1/load_lora_adapter", lora_name=name, lora_path=str(folder / "poet"), load_inplace=True
            )
            assert added.status_code == 200, added.text
        poet = text(first, "writer:pirate")
    with started() as second:
        assert text(second, "writer:pirate") == poet == text(second, "writer:declared")
        for name in ("pirate", "declared"):
            assert post(second, "/v1/unload_lora_adapter", lora_name=name).status_code == 200
        assert models(second) == {"writer": None}
    with started() as third:
        assert models(third) == {"writer": None, "writer:declared": "writer"}
        assert text(third, "writer:declared") != poet


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/nowhere"}, 400, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "a:b", "lora_path": "/nowhere"}, 400, "lora_name"),
        ("/v1/load_lora_adapter", {"lora_name": "x"}, 400, "lora_path"),
        ("/v1/unload_lora_adapter", {"lora_name": "x"}, 404, "lora_name"),
        ("/v1/unload_lora_adapter", {"lora_name": "declared", "lora_int_id": 1}, 400, "lora_int_id"),
        ("/v1/completions", {"model": "writer:declared", "lora": "other", **ASK}, 400, "lora"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_and_changes_nothing(
    server: Serving, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = post(server, path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert models(server) == {"writer": None, "writer:declared": "writer"}

"""A language model through us beside vLLM's own server with the same engine arguments, asked by vLLM's own bench client.

The default model is the language model of omni-tiny, which ships with the package: it is so small that all that lies around
the engine shows. `--model FOLDER` takes any other that vLLM serves.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.command import Bench, Report, Size, console
from bench.measuring.rounds import Measure, Sample, flat, interleaved, medians, spreads
from bench.peers import vllm_client, vllm_server
from bench.served import served
from omnibus.workers.engines.checkpoints import resolve_model

_OURS, _THEIRS = "omnibus", "vllm"
_FIGURES = {
    "tokens_a_second": "output_throughput",
    "first_token_ms": "median_ttft_ms",
    "between_tokens_ms": "median_itl_ms",
    "request_ms": "median_e2el_ms",
}
"""Ours, and the name in the client's result."""
_PIPELINE = """
name: llm
deadline: 300s
tenant_share: null
stages:
- {{stage_id: 0, name: llm, engine: vllm, model: {model}, slots: {slots}, final_output: true, final_output_type: text,
   env: {{HF_HUB_OFFLINE: "1"}}, engine_args: {engine_args}}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rounds: int = 5
    widths: str = "1,8,32"
    """Requests in flight."""
    requests: int = 12
    """Requests a round for one in flight; eight times as many, at most, for more."""
    prompt: int = 64
    """Tokens."""
    answer: int = 64
    """Tokens."""
    context: int = 256
    """Longest prompt and answer together that the engine takes."""
    model: str = "package:omnibus.omni_tiny/checkpoints/thinker"


def run(settings: Settings, folder: Path) -> Report:
    """Start both servers and the client, and ask them in turn."""
    if importlib.util.find_spec("vllm") is None:
        return Report(figures={}, missing=_missing(settings, "vLLM is not installed (make setup)"))
    widths = [int(width) for width in settings.widths.split(",")]
    checkpoint, arguments = resolve_model(settings.model), _engine_args(settings, max(widths))
    text = _PIPELINE.format(model=checkpoint, slots=max(widths), engine_args=json.dumps(arguments))
    with (
        served(text, folder / _OURS, front_door=True) as ours,
        vllm_server.running(checkpoint, arguments, folder / _THEIRS) as theirs,
        vllm_client.running(folder / "client") as client,
    ):
        urls = {_OURS: ours.url, _THEIRS: theirs}

        def measured(url: str) -> Measure:
            async def measure() -> Sample:
                return {
                    f"{name}_{width}": value
                    for width in widths
                    for name, value in _ask(client, settings, checkpoint, url, width).items()
                }

            return measure

        for url in urls.values():
            _ask(client, settings, checkpoint, url, max(widths))
        measures = {name: measured(url) for name, url in urls.items()}
        rounds = asyncio.run(interleaved(measures, settings.rounds, lambda line: console.print(line, style="dim")))
    samples = [{**flat(one), **_compared(one, widths)} for one in rounds]
    return Report(figures=medians(samples), spread=spreads(samples))


def _ask(client: vllm_client.VllmClient, settings: Settings, checkpoint: str, url: str, width: int) -> Sample:
    flags = {
        "backend": "openai", "endpoint": "/v1/completions", "base-url": url, "model": vllm_server.MODEL,
        "tokenizer": checkpoint, "dataset-name": "random", "random-input-len": settings.prompt,
        "random-output-len": settings.answer, "num-prompts": settings.requests * min(width, 8), "max-concurrency": width,
        "seed": 1, "temperature": 0, "percentile-metrics": "ttft,itl,e2el",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    result = client.run(*words, "--ignore-eos", "--disable-tqdm")
    return {name: float(result[theirs]) for name, theirs in _FIGURES.items()}


def _compared(one: Mapping[str, Sample], widths: list[int]) -> dict[str, float]:
    ours, theirs = one[_OURS], one[_THEIRS]
    compared = {}
    for width in widths:
        compared[f"tokens_beside_vllm_{width}"] = ours[f"tokens_a_second_{width}"] / theirs[f"tokens_a_second_{width}"]
        compared[f"first_token_beside_vllm_{width}"] = (
            ours[f"first_token_ms_{width}"] / theirs[f"first_token_ms_{width}"]
        )
        compared[f"first_token_over_vllm_ms_{width}"] = (
            ours[f"first_token_ms_{width}"] - theirs[f"first_token_ms_{width}"]
        )
    return compared


def _engine_args(settings: Settings, width: int) -> dict[str, object]:
    return {
        "dtype": "float32", "enforce_eager": True, "max_model_len": settings.context, "max_num_seqs": width,
        "max_num_batched_tokens": max(512, settings.context), "kv_cache_memory_bytes": 64 << 20,
        "distributed_executor_backend": "uni", "enable_prefix_caching": False,
    }  # fmt: skip


def _missing(settings: Settings, reason: str) -> dict[str, str]:
    names = ("tokens_beside_vllm", "first_token_beside_vllm", "first_token_over_vllm_ms")
    return {f"{name}_{width}": reason for width in settings.widths.split(",") for name in names}


BENCH = Bench(
    name="overhead",
    summary="A language model through us beside vLLM's own server.",
    sizes={
        Size.SMALLEST: Settings(rounds=1, widths="2", requests=1, prompt=16, answer=8),
        Size.QUICK: Settings(rounds=1, requests=6, prompt=32, answer=32),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()

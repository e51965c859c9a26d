"""Qwen's omni presets on tiny random weights of the real classes: text and sound are those of transformers' `generate`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import torch

from omnibus.client.omni import Omni
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.writing import pipeline_yaml
from tests.support import tiny_omni
from tests.support.tiny_omni import PROMPT, SPEAKER

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    # torch and transformers use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`:UserWarning"),
]
TORCHVISION = "0.28.0"
TOKENS, FRAMES = 10, 40
STEP, SEED = 1 / 32768, 7
_SPEAKING = {"temperature": 0.0, "max_tokens": FRAMES}
GREEDY: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3-omni": {"thinker": {"temperature": 0.0, "max_tokens": TOKENS}, "talker": _SPEAKING},
    "qwen2-5-omni": {
        "thinker": {"temperature": 0.0, "max_tokens": TOKENS}, "talker": _SPEAKING, "vocoder": {"seed": SEED},
    },
}  # fmt: skip
ON_CPU = {
    "dtype": "float32", "max_model_len": 128, "max_num_batched_tokens": 512, "kv_cache_memory_bytes": 64 << 20,
    "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
}  # fmt: skip
WHOLE = {
    "thinker_max_new_tokens": TOKENS, "thinker_do_sample": False, "thinker_eos_token_id": tiny_omni.END,
    "talker_max_new_tokens": FRAMES, "talker_do_sample": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def torchvision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torchvision, without the operators that its build for GPUs registers: vLLM's Qwen classes import it."""
    folder = tmp_path_factory.mktemp("torchvision")
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    uv = str(Path(sys.executable).parent / "uv")
    words = [
        uv,
        "pip",
        "install",
        "--python",
        sys.executable,
        "--target",
        str(folder),
        "--no-deps",
        f"torchvision=={TORCHVISION}",
    ]
    done = subprocess.run(  # not in the repository, whose settings for uv leave torchvision out
        words, cwd=folder, env={**os.environ, **links, "UV_LINK_MODE": "copy"}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "torchvision" / "_meta_registrations.py").write_text("")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(preset: str, checkpoint: Path, layers: list[int], torchvision: Path) -> str:
    """A file with the preset's graph and classes; weights and sizes are small, and it is greedy."""
    spec, stages = load_pipeline(preset), []
    env = {"PYTHONPATH": f"{torchvision}{os.pathsep}{Path.cwd()}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for stage in spec.stages:
        is_thinker = stage.engine == "vllm"
        args = {**ON_CPU, "hidden_states": layers} if is_thinker else {"checkpoint": str(checkpoint)}
        changes = {"engine_args": args, "default_sampling_params": GREEDY[preset].get(stage.name, {}), "env": env}
        model = str(checkpoint) if is_thinker else stage.model
        stages.append(msgspec.structs.replace(stage, model=model, devices="", slots=1, **changes))
    file = checkpoint / "pipeline.yaml"
    file.write_text(pipeline_yaml(msgspec.structs.replace(spec, stages=tuple(stages))))
    return str(file)


def save_processor(folder: Path, kind: str, torchvision: Path) -> None:
    """In a process of its own: this one's transformers has been imported without torchvision."""
    code = "import pathlib, sys, tests.support.tiny_omni as o; o.save_processor(pathlib.Path(sys.argv[1]), sys.argv[2])"
    env = {**os.environ, "PYTHONPATH": f"{torchvision}{os.pathsep}{Path.cwd()}"}
    words = [sys.executable, "-c", code, str(folder), kind]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def assert_same(preset: str, model: Any, folder: Path, layers: list[int], torchvision: Path, **more: Any) -> None:
    torch.manual_seed(SEED)
    sequence, wave = model.generate(input_ids=torch.tensor([PROMPT]), **WHOLE, **more)
    with Omni(tiny(preset, folder, layers, torchvision)) as omni:
        (result,) = omni.generate([{"prompt_token_ids": PROMPT}], use_tqdm=False)
    result.raise_for_failure()

    said = sequence[0, len(PROMPT) :].tolist()
    assert result.text.split() == [tiny_omni.word(token) for token in said if token >= len(tiny_omni.WORDS)]
    samples, rate = soundfile.read(io.BytesIO(bytes(result.output("audio").items[0])))
    expected = wave.reshape(-1).numpy()
    assert (rate, samples.shape) == (24_000, expected.shape)
    assert np.abs(samples - np.clip(expected, -1, 1)).max() <= 1.5 * STEP


def test_qwen3_omni_writes_and_speaks_as_the_whole_model(torchvision: Path, tmp_path: Path) -> None:
    model = tiny_omni.make_qwen3_omni(tmp_path)
    save_processor(tmp_path, "Qwen3OmniMoeProcessor", torchvision)
    assert_same("qwen3-omni", model, tmp_path, [0, 2], torchvision, speaker="Ethan", return_audio=True)


def test_qwen25_omni_writes_and_speaks_as_the_whole_model_from_the_same_noise(
    torchvision: Path, tmp_path: Path
) -> None:
    model = tiny_omni.make_qwen25_omni(tmp_path)
    save_processor(tmp_path, "Qwen2_5OmniProcessor", torchvision)
    mask = torch.ones(1, len(PROMPT), dtype=torch.long)
    assert_same("qwen2-5-omni", model, tmp_path, [0, 3], torchvision, speaker=SPEAKER, attention_mask=mask)

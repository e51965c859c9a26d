"""The checks. Each serves a pipeline, and returns its figures; one that fails raises. Their names are in `running`."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from omnibus import Omni
from omnibus.client.omni import OmniResult
from tools import random_checkpoints
from tools.gpu_check.calls import gaps, recorded
from tools.gpu_check.gauges import Utilisation, used_mib
from tools.gpu_check.kit import Figures, Impossible, Kit, require

_STATES = (0, 2)
"""The layers whose hidden states are handed over."""
_PROMPT = "draw a red circle"


def device(kit: Kit) -> Figures:
    """The card; raises Impossible where none is."""
    if kit.cpu:
        return {"card": "CPU"}
    if not torch.cuda.is_available():
        raise Impossible("torch.cuda.is_available() is false; --cpu runs the same, small, on CPU")
    card = torch.cuda.get_device_properties(0)
    return {"card": card.name, "memory_mib": card.total_memory >> 20, "cuda": torch.version.cuda}


def checkpoints(kit: Kit) -> Figures:
    """Random weights, on disk, for the other checks."""
    random_checkpoints.make_llm(kit.llm, vocabulary=kit.sizes.vocabulary, size=kit.sizes.llm)
    figures = {"llm_mib": _mib(kit.llm)}
    if _has("diffusers"):
        random_checkpoints.make_painter(kit.painter, kit.sizes.painter)
        figures["painter_mib"] = _mib(kit.painter)
    return figures


def handoff(kit: Kit) -> Figures:
    """Tensors on the device, from one stage's process to the next one's."""
    nbytes = kit.sizes.handoff_mib << 20
    outputs = {"outputs": {"tensor": "tensor", "made": "json"}}
    maker = {"name": "maker", "engine": "python", "model": "tools.gpu_check.stages:make_tensor", "engine_args": outputs}
    taker = {
        "name": "taker", "engine": "python", "model": "tools.gpu_check.stages:take_tensor", "input_sources": [0],
        "final_output": True, "final_output_type": "text",
    }  # fmt: skip
    with kit.served(maker, taker) as omni:
        found = [json.loads(_text(omni, str(nbytes))) for _ in range(8)]
    seconds = median(one["seconds"] for one in found[2:])
    return {
        "from": found[0]["device"], "mib": nbytes >> 20, "ms": round(1000 * seconds, 2),
        "gb_a_second": round(nbytes / seconds / 1e9, 2),
    }  # fmt: skip


def vllm_text(kit: Kit) -> Figures:
    """Many texts at the same time."""
    tokens = kit.sizes.tokens
    greedy = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True}
    with kit.served(kit.writer()) as omni:
        _results(omni, [_PROMPT] * 2, [greedy])
        with Utilisation() as utilisation:
            began = time.monotonic()
            made = _results(omni, [_PROMPT] * kit.sizes.texts, [greedy])
            seconds = time.monotonic() - began
    counts = {result.outputs[0].usage.completion_tokens for result in made}
    assert counts == {tokens}, f"texts of {sorted(counts)} tokens, not {tokens}"
    return {
        "texts": len(made), "tokens_a_second": round(len(made) * tokens / seconds, 1),
        "utilisation_percent": utilisation.mean, "distinct_texts": len({result.text for result in made}),
    }  # fmt: skip


def hidden_states(kit: Kit) -> Figures:
    """Hidden states of a text under vLLM, handed over and compared with those of transformers."""
    comparison = {
        "name": "comparison", "engine": "python", "model": "tools.gpu_check.stages:StatesComparison",
        "input_sources": [0], "final_output": True, "final_output_type": "text",
        "engine_args": {"checkpoint": str(kit.llm), "layers": list(_STATES), "outputs": {"text": "text"}},
    }  # fmt: skip
    asked = {"temperature": 0.0, "max_tokens": kit.sizes.tokens, "ignore_eos": True}
    with kit.served(kit.writer(final=False, hidden_states=list(_STATES)), comparison) as omni:
        found: Figures = json.loads(_text(omni, _PROMPT, [asked, None]))
    allowed = 1e-4 if kit.sizes.llm.dtype == "float32" else 0.05
    assert found["difference"] < allowed, f"they differ by {found['difference']} of the greatest, {allowed} is allowed"
    return found


def diffusers_batches(kit: Kit) -> Figures:
    """Pictures one by one and in batches, and the time that the device waits between two batches."""
    folder, count = kit.records("diffusers"), kit.sizes.images
    with kit.served(kit.paints("diffusers")) as omni:
        _pictures(omni, kit, 8)  # shapes that are new take longer
        began = time.monotonic()
        for number in range(4):
            _pictures(omni, kit, 1, seed=number)
        alone = 4 / (time.monotonic() - began)
        with Utilisation() as utilisation:
            began = time.monotonic()
            _pictures(omni, kit, count)
            together = count / (time.monotonic() - began)
        memory = used_mib()
    calls = recorded(folder, since=began)
    most = max(call.images for call in calls)
    assert most > 1, "no batch had more than one picture"
    return {
        "images_a_second_alone": round(alone, 2), "images_a_second": round(together, 2), "largest_batch": most,
        "utilisation_percent": utilisation.mean, "memory_mib": memory, **gaps(calls),
    }  # fmt: skip


def sleep_wake(kit: Kit) -> Figures:
    """Engines that give their memory back, and make the same as before when they are awake again; vLLM's on a GPU alone."""
    stages = [kit.paints("sleep")]
    if not kit.cpu and _has("vllm"):
        stages.append(kit.writer(enable_sleep_mode=True))
    greedy: list[Any] = [None, {"temperature": 0.0, "max_tokens": 16}][: len(stages)]
    with kit.served(*stages) as omni:
        before, awake = _made(omni, kit, greedy), used_mib()
        began = time.monotonic()
        omni.sleep()
        slept, asleep = time.monotonic() - began, used_mib()
        began = time.monotonic()
        omni.wake_up()
        woke, after = time.monotonic() - began, _made(omni, kit, greedy)
    assert before == after, "another output than before the sleep"
    if awake is not None and asleep is not None:
        assert asleep < awake, f"asleep it takes {asleep} MiB, awake {awake}"
    return {
        "engines": [stage["engine"] for stage in stages], "sleep_s": round(slept, 2), "wake_s": round(woke, 2),
        "awake_mib": awake, "asleep_mib": asleep,
    }  # fmt: skip


def two_replicas(kit: Kit) -> Figures:
    """Two replicas of a painter on the same device, and both at work."""
    folder, count = kit.records("two"), kit.sizes.images
    with kit.served(kit.paints("two", num_replicas=2, slots=4)) as omni:
        _pictures(omni, kit, 8)
        began = time.monotonic()
        with Utilisation() as utilisation:
            _pictures(omni, kit, count)
        seconds, memory = time.monotonic() - began, used_mib()
    calls = recorded(folder, since=began)
    shares = [sum(call.images for call in calls if call.process == one) for one in {call.process for call in calls}]
    assert len(shares) == 2, f"{len(shares)} of two replicas painted"
    return {
        "images_a_second": round(count / seconds, 2), "images_by_replica": sorted(shares), "memory_mib": memory,
        "utilisation_percent": utilisation.mean,
    }  # fmt: skip


def _results(omni: Omni, prompts: list[str], sampling: Sequence[Any] | None = None) -> list[OmniResult]:
    results = omni.generate(prompts, sampling, use_tqdm=False)
    for result in results:
        result.raise_for_failure()
    return results


def _text(omni: Omni, prompt: str, sampling: Sequence[Any] | None = None) -> str:
    return _results(omni, [prompt], sampling)[0].text


def _pictures(omni: Omni, kit: Kit, count: int, seed: int = 0) -> list[OmniResult]:
    """So many pictures, which are pictures of the size that the model has."""
    results = _results(omni, ["abc"] * count, [_painting(kit, seed)])
    for result in results:
        _check_picture(result, kit)
    return results


def _painting(kit: Kit, seed: int) -> dict[str, Any]:
    side = 2 * kit.sizes.painter.latents
    return {"num_inference_steps": kit.sizes.steps, "guidance_scale": 2.0, "seed": seed, "width": side, "height": side}


def _check_picture(result: OmniResult, kit: Kit) -> None:
    image, side = result.output("image"), 2 * kit.sizes.painter.latents
    assert image is not None
    pixels = np.asarray(Image.open(io.BytesIO(image.items[0])))
    assert pixels.shape == (side, side, 3), f"a picture of {pixels.shape}"
    assert pixels.std() > 0, "a picture of one colour: the weights made no numbers"


def _made(omni: Omni, kit: Kit, greedy: list[Any]) -> list[object]:
    """The outputs of one prompt, always the same."""
    (result,) = _results(omni, ["abc"], [_painting(kit, 3), *greedy[1:]])
    return [output.items for output in result.outputs]


def _has(package: str) -> bool:
    try:
        require(package)
    except Impossible:
        return False
    return True


def _mib(folder: Any) -> int:
    return int(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) >> 20

"""Pipeline classes of diffusers that the tests run, each with a request, and the row of the documentation that it earns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import tiny_checkpoints, tiny_pipelines, tiny_presets
from tests.support.tiny_pipelines import WIDTH

Make = Callable[[Path], object]
_NO_ENCODER = ("text_encoder", "tokenizer")
SMALL = {"num_inference_steps": 3, "size": "32x32"}
CLIP = {**SMALL, "num_frames": 9}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Embeddings."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def picture(side: int = 32, seed: int = 0) -> np.ndarray:
    """A picture of noise, uint8 (side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def mask(side: int = 32) -> np.ndarray:
    """A white square in the middle, uint8 (side, side)."""
    return np.pad(np.full((side // 2, side // 2), 255, np.uint8), side // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCase:
    """One class and a request to it."""

    kind: str
    """The class."""
    make: Make
    """Saves its checkpoint in a folder."""
    sampling: Mapping[str, Any] = field(default_factory=lambda: SMALL)
    prompt: str | None = None
    embeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Pictures by the parameter that they are for."""
    video: np.ndarray | None = None
    leave_out: tuple[str, ...] = ()
    steps: int | None = 3
    """Steps that are reported."""

    def row(self, outputs: Mapping[str, Any], parameters: int) -> str:
        """The row of the documentation, from what the engine has made."""
        given = ["prompt" if self.prompt is not None else "embeddings"]
        given += [f"{len(files)} × `{name}`" if len(files) > 1 else f"`{name}`" for name, files in self.images.items()]
        given += ["`video`"] if self.video is not None else []
        made = " and ".join(_shown(name, outputs) for name in ("image", "video", "audio") if name in outputs)
        return f"| `{self.kind}` | {', '.join(given)} | {made} | {parameters / 1000:.0f} k | a direct call: equal |"


def _shown(name: str, outputs: Mapping[str, Any]) -> str:
    shape = outputs[name].shape
    if name == "audio":
        return f"sound, {shape[0]} channels of {outputs['sample_rate']} Hz"
    height, width = shape[-3:-1]
    return f"picture, {width} × {height}" if name == "image" else f"video, {shape[1]} frames of {width} × {height}"


_EMBEDS = {"prompt_embeds": noise(5, WIDTH), "negative_prompt_embeds": noise(5, WIDTH, seed=1)}
_POOLED = {
    "pooled_prompt_embeds": noise(WIDTH, seed=2), "negative_pooled_prompt_embeds": noise(WIDTH, seed=3),
}  # fmt: skip
_QWEN = {"prompt_embeds": noise(6, tiny_presets.WIDTH), "negative_prompt_embeds": noise(6, tiny_presets.WIDTH, seed=1)}
_PAINT = {"num_inference_steps": 3, "guidance_scale": 3.0}
_PAINTED = {"image": (picture(16),)}
_FLUX = {"prompt_embeds": noise(6, WIDTH), "pooled_prompt_embeds": noise(WIDTH, seed=2)}
_OF_FLUX = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
_WAN_I2V = functools.partial(tiny_pipelines.make_wan, from_image=True)

CASES = (
    ClassCase(
        kind="StableDiffusionPipeline", make=tiny_checkpoints.make_painter, prompt="red square",
        sampling={**_PAINT, "size": "16x16"},
    ),
    ClassCase(
        kind="StableDiffusionImg2ImgPipeline", make=tiny_checkpoints.make_painter, prompt="red square", images=_PAINTED,
        sampling={**_PAINT, "strength": 1.0},
    ),
    ClassCase(
        kind="StableDiffusionInpaintPipeline", make=tiny_checkpoints.make_painter, prompt="red square",
        images={**_PAINTED, "mask_image": (mask(16),)}, sampling={**_PAINT, "size": "16x16", "strength": 1.0},
    ),
    ClassCase(
        kind="StableDiffusionXLImg2ImgPipeline", make=tiny_pipelines.make_sdxl, embeds={**_EMBEDS, **_POOLED},
        images={"image": (picture(),)}, sampling={**_PAINT, "strength": 1.0},
    ),
    ClassCase(
        kind="StableDiffusionXLInpaintPipeline", make=tiny_pipelines.make_sdxl, embeds={**_EMBEDS, **_POOLED},
        images={"image": (picture(),), "mask_image": (mask(),)}, sampling={**SMALL, **_PAINT, "strength": 1.0},
    ),
    ClassCase(
        kind="FluxImg2ImgPipeline", make=tiny_presets.make_flux, embeds=_FLUX, images={"image": (picture(),)},
        sampling={**SMALL, "strength": 1.0}, leave_out=_OF_FLUX,
    ),
    ClassCase(
        kind="FluxInpaintPipeline", make=tiny_presets.make_flux, embeds=_FLUX,
        images={"image": (picture(),), "mask_image": (mask(),)}, sampling={**SMALL, "strength": 1.0}, leave_out=_OF_FLUX,
    ),
    ClassCase(
        kind="FluxKontextPipeline", make=tiny_presets.make_flux, embeds=_FLUX, images={"image": (picture(),)},
        sampling={**SMALL, "max_area": 1024, "_auto_resize": False}, leave_out=_OF_FLUX,
    ),
    ClassCase(
        kind="QwenImagePipeline", make=tiny_pipelines.make_qwen_image, embeds=_QWEN, leave_out=_NO_ENCODER,
        sampling={**SMALL, "true_cfg_scale": 2.0},
    ),
    ClassCase(
        kind="QwenImageImg2ImgPipeline", make=tiny_pipelines.make_qwen_image, embeds=_QWEN, leave_out=_NO_ENCODER,
        images={"image": (picture(),)}, sampling={**SMALL, "strength": 1.0},
    ),
    ClassCase(
        kind="QwenImageInpaintPipeline", make=tiny_pipelines.make_qwen_image, embeds=_QWEN, leave_out=_NO_ENCODER,
        images={"image": (picture(),), "mask_image": (mask(),)}, sampling={**SMALL, "strength": 1.0},
    ),
    ClassCase(
        kind="QwenImageEditPlusPipeline", make=tiny_pipelines.make_qwen_image, embeds=_QWEN,
        leave_out=(*_NO_ENCODER, "processor"), images={"image": (picture(), picture(seed=1))},
        sampling={**SMALL, "true_cfg_scale": 2.0},
    ),
    ClassCase(
        kind="SanaPipeline", make=tiny_checkpoints.make_diffusion, embeds=_EMBEDS,
        sampling={**SMALL, "guidance_scale": 2.0},
    ),
    ClassCase(kind="WanPipeline", make=tiny_pipelines.make_wan, embeds=_EMBEDS, sampling=CLIP),
    ClassCase(
        kind="WanImageToVideoPipeline", make=_WAN_I2V, embeds=_EMBEDS, images={"image": (picture(),)}, sampling=CLIP
    ),
    ClassCase(
        kind="WanVideoToVideoPipeline", make=tiny_pipelines.make_wan, embeds=_EMBEDS, sampling={**SMALL, "strength": 1.0},
        video=np.stack([picture(seed=seed) for seed in range(9)]),
    ),
    ClassCase(kind="LTXPipeline", make=tiny_pipelines.make_ltx, embeds=_EMBEDS, sampling={**CLIP, "frame_rate": 25.0}),
    ClassCase(
        kind="LTX2Pipeline", make=tiny_pipelines.make_ltx2, prompt="a robot dances",
        sampling={**SMALL, "num_frames": 5, "fps": 25.0, "guidance_scale": 1.0, "max_sequence_length": 16},
    ),
    ClassCase(
        kind="CogVideoXPipeline", make=tiny_pipelines.make_cogvideox, embeds=_EMBEDS,
        sampling={**CLIP, "size": "16x16", "max_sequence_length": 5},
    ),
    ClassCase(
        kind="HunyuanVideo15Pipeline", make=tiny_pipelines.make_hunyuan_video15,
        embeds={"prompt_embeds": noise(6, WIDTH), "prompt_embeds_2": noise(4, WIDTH, seed=1)},
        sampling={**SMALL, "size": "16x16", "num_frames": 5},
    ),
    ClassCase(
        kind="StableAudioPipeline", make=tiny_pipelines.make_stable_audio, prompt="a hammer hits wood",
        sampling={"num_inference_steps": 3, "guidance_scale": 4.0, "seconds": 0.1},
    ),
    ClassCase(
        kind="AceStepPipeline", make=tiny_pipelines.make_ace_step, prompt="jazz",
        sampling={"num_inference_steps": 3, "lyrics": "[instrumental]", "seconds": 0.5, "max_text_length": 64,
                  "max_lyric_length": 64},
    ),
)  # fmt: skip

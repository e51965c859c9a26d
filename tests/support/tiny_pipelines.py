"""Tiny pipelines of diffusers' own classes with random weights, for pictures, video and sound. None takes a second to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.stable_audio import StableAudioProjectionModel

from tests.support import tiny_presets

WIDTH = 32
"""Width of embeddings, where a pipeline takes them from outside."""
RATE = 8000
_NO_TEXT: dict[str, Any] = {"text_encoder": None, "tokenizer": None}


def make_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL without its encoders; 2 x 2 pixels a latent."""
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, norm_num_groups=4, cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    return _saved(
        folder, diffusers.StableDiffusionXLPipeline(
            vae=vae, unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
            text_encoder_2=None, tokenizer_2=None, **_NO_TEXT,
        ),
    )  # fmt: skip


def make_qwen_image(folder: Path) -> Path:
    """Qwen-Image with its encoder."""
    tiny_presets.make_qwen_image(folder)
    return folder


def make_wan(folder: Path, *, from_image: bool = False) -> Path:
    """Wan without its encoder; 8 x 8 pixels and 4 frames a latent."""
    torch.manual_seed(7)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=36 if from_image else 16,
        out_channels=16, text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler, **_NO_TEXT}
    if from_image:
        return _saved(folder, diffusers.WanImageToVideoPipeline(image_encoder=None, image_processor=None, **parts))
    return _saved(folder, diffusers.WanPipeline(**parts))


def make_ltx(folder: Path) -> Path:
    """LTX without its encoder; frames alone."""
    torch.manual_seed(7)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=WIDTH,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return _saved(folder, diffusers.LTXPipeline(vae=vae, transformer=transformer, scheduler=scheduler, **_NO_TEXT))


def make_ltx2(folder: Path) -> Path:
    """LTX-2 with a Gemma 3 as its encoder: frames, and a sound of 16 kHz."""
    torch.manual_seed(7)
    tokenizer, width = tiny_presets.byte_tokenizer(), 16
    gemma = transformers.Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    heads = {
        f"{of}_connector_{name}": value
        for of in ("video", "audio")
        for name, value in (
            ("num_attention_heads", 4), ("attention_head_dim", 4), ("num_layers", 1), ("num_learnable_registers", None),
        )
    }  # fmt: skip
    rope = {"rope_double_precision": False, "rope_type": "split"}
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), down_block_types=("LTX2VideoDownBlock3D",), layers_per_block=(1, 1),
        decoder_block_out_channels=(8,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False), downsample_type=("spatial",),
        upsample_type=("spatiotemporal",), upsample_residual=(False,), upsample_factor=(1,), timestep_conditioning=False,
        patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2, resolution=32,
        latent_channels=2, norm_type="pixel", causality_axis="height", sample_rate=16_000, mel_hop_length=160, mel_bins=8,
    )  # fmt: skip
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, num_layers=2, caption_channels=width, **rope,
    )  # fmt: skip
    return _saved(
        folder, diffusers.LTX2Pipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=audio_vae, tokenizer=tokenizer,
            text_encoder=transformers.Gemma3ForConditionalGeneration(gemma).eval(), transformer=transformer,
            connectors=LTX2TextConnectors(
                caption_channels=width, text_proj_in_factor=3, connector_rope_base_seq_len=32, **heads, **rope
            ),
            vocoder=LTX2Vocoder(
                in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
                resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16_000,
            ),
        ),
    )  # fmt: skip


def make_cogvideox(folder: Path) -> Path:
    """CogVideoX without its encoder."""
    torch.manual_seed(7)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=WIDTH,
        num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=5,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler()
    return _saved(
        folder, diffusers.CogVideoXPipeline(vae=vae, transformer=transformer, scheduler=scheduler, **_NO_TEXT)
    )


def make_hunyuan_video15(folder: Path) -> Path:
    """HunyuanVideo 1.5 without its encoders. Its guidance is a component; its class has no callback."""
    torch.manual_seed(7)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        patch_size=1, patch_size_t=1, text_embed_dim=WIDTH, text_embed_2_dim=WIDTH, image_embed_dim=12,
        rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    return _saved(
        folder, diffusers.HunyuanVideo15Pipeline(
            transformer=transformer, vae=vae, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
            guider=ClassifierFreeGuidance(guidance_scale=1.0), text_encoder_2=None, tokenizer_2=None, **_NO_TEXT,
        ),
    )  # fmt: skip


def make_stable_audio(folder: Path) -> Path:
    """Stable Audio with a T5 as its encoder: an eighth of a second of stereo at most."""
    torch.manual_seed(7)
    transformer = diffusers.StableAudioDiTModel(
        sample_size=256, in_channels=3, num_layers=2, attention_head_dim=4, num_key_value_attention_heads=2, out_channels=3,
        cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8, cross_attention_input_dim=4,
    )  # fmt: skip
    vae = _oobleck(channels=3, ratios=[2, 2])
    return _saved(
        folder, diffusers.StableAudioPipeline(
            vae=vae, text_encoder=tiny_presets.t5(width=32), tokenizer=tiny_presets.t5_tokenizer(), transformer=transformer,
            projection_model=StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
        ),
    )  # fmt: skip


def make_ace_step(folder: Path) -> Path:
    """ACE-Step with a Qwen3 as its encoder."""
    torch.manual_seed(7)
    tokenizer, heads = (
        tiny_presets.byte_tokenizer(),
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    )
    encoder = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, **heads
    )
    return _saved(
        folder, diffusers.AceStepPipeline(
            vae=_oobleck(channels=8, ratios=[8, 16]), text_encoder=transformers.Qwen3Model(encoder).eval(), tokenizer=tokenizer,
            transformer=diffusers.AceStepTransformer1DModel(
                hidden_size=32, intermediate_size=32, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8,
                patch_size=2, sliding_window=16, **heads,
            ),
            condition_encoder=AceStepConditionEncoder(
                hidden_size=32, intermediate_size=32, text_hidden_dim=32, timbre_hidden_dim=8,
                num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1, **heads,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        ),
    )  # fmt: skip


def _oobleck(*, channels: int, ratios: list[int]) -> diffusers.AutoencoderOobleck:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=ratios, decoder_channels=channels, decoder_input_channels=channels,
        audio_channels=2, channel_multiples=[1, 2], sampling_rate=RATE,
    )  # fmt: skip


def _saved(folder: Path, pipeline: diffusers.DiffusionPipeline) -> Path:
    pipeline.save_pretrained(folder)
    return folder

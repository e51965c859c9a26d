"""Tiny random checkpoints of the classes that the shipped presets name: right in their shapes, useless in what they say."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

WIDTH = 64
"""Size of hidden states: two heads of 32, the least that vLLM computes on CPU."""
QWEN_SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    "<|video_pad|>",
)
LLASA_MARKS = tuple(
    f"<|{name}_{end}|>"
    for name in ("TEXT_UNDERSTANDING", "SPEECH_GENERATION", "SPEECH_UNDERSTANDING")
    for end in ("START", "END")
)
SPEECH_CODES = 64
"""Codes that the tiny Llasa can say, of the 65,536 of its codec."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}


def make_qwen3(folder: Path) -> Path:
    """A chat model that reads and writes bytes."""
    torch.manual_seed(7)
    tokenizer = byte_tokenizer(QWEN_SPECIALS)
    tokenizer.save_pretrained(folder)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), head_dim=32, tie_word_embeddings=False, **_SIZES, **_ends(tokenizer)
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def make_qwen_image(folder: Path) -> diffusers.QwenImagePipeline:
    """Qwen-Image with its own encoder, a Qwen2.5-VL; 16 x 16 pixels a token of the picture."""
    torch.manual_seed(7)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=12,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    _make_attentive(transformer)
    tokenizer = byte_tokenizer(QWEN_SPECIALS)
    pipeline = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=_vision_language_model(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return pipeline


def make_text_half(folder: Path, whole: transformers.Qwen2_5_VLForConditionalGeneration) -> Path:
    """The language half of a Qwen2.5-VL as a Qwen2 of its own: for text alone, both compute the same.

    vLLM's Qwen2.5-VL needs torchvision, which the CPU set-up leaves out.
    """
    byte_tokenizer(QWEN_SPECIALS).save_pretrained(folder)
    sizes = {name: getattr(whole.config.text_config, name) for name in (*_SIZES, "vocab_size", "rms_norm_eps")}
    config = transformers.Qwen2Config(
        rope_parameters=_ROPE, tie_word_embeddings=False, **sizes, **_ends(byte_tokenizer(QWEN_SPECIALS))
    )
    half = transformers.Qwen2ForCausalLM(config)
    half.model.load_state_dict(whole.model.language_model.state_dict())
    half.save_pretrained(folder)
    return folder


def make_stable_diffusion_3(folder: Path) -> Path:
    """Stable Diffusion 3 with its three encoders; 16 x 16 pixels a patch."""
    torch.manual_seed(7)
    clips = [transformers.CLIPTextModelWithProjection(_clip_config()) for _ in range(2)]
    diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=clips[0],
        tokenizer=_clip_tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=t5(width=64),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(folder)
    return folder


def make_flux(folder: Path) -> Path:
    """FLUX.1 schnell: CLIP pools the prompt, T5 spells it, no guidance embedding."""
    torch.manual_seed(7)
    diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(_clip_config()),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=t5(width=32),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=False,
        ),
    ).save_pretrained(folder)
    return folder


def make_llasa(folder: Path) -> Path:
    """A Llama whose vocabulary ends with speech tokens."""
    torch.manual_seed(7)
    codes = tuple(f"<|s_{code}|>" for code in range(SPEECH_CODES))
    tokenizer = byte_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), (*LLASA_MARKS, *codes))
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), head_dim=32, tie_word_embeddings=False, **_SIZES, **_ends(tokenizer)
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def speech_token_ids(folder: Path) -> list[int]:
    """The ids of a tiny Llasa's speech tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.convert_tokens_to_ids([f"<|s_{code}|>" for code in range(SPEECH_CODES)])


def make_xcodec2(folder: Path) -> Path:
    """X-Codec2: codes to sound of 16 kHz, 320 samples a code."""
    torch.manual_seed(7)
    semantic = {
        "model_type": "wav2vec2-bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "output_hidden_size": 32,
    }
    config = transformers.Xcodec2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        encoder_hidden_size=4,
        quantization_dim=64,
        semantic_model_config=semantic,
    )
    transformers.Xcodec2Model(config).save_pretrained(folder)
    return folder


_ROPE = {"rope_type": "default", "rope_theta": 1e6}


def byte_tokenizer(
    specials: tuple[str, ...] = QWEN_SPECIALS, words: tuple[str, ...] = ()
) -> transformers.PreTrainedTokenizerFast:
    """A token a byte, and the special ones; `words` are whole tokens that are text nevertheless."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate(alphabet)},
        merges=[],
        unk_token=None,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(specials),
    )
    tokenizer.add_tokens(list(words))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _ends(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def _vision_language_model(
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> transformers.Qwen2_5_VLForConditionalGeneration:
    named = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    text = {
        **_SIZES, **_ends(tokenizer), "vocab_size": len(tokenizer),
        "rope_parameters": {**_ROPE, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **named)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _make_attentive(transformer: diffusers.QwenImageTransformer2DModel) -> None:
    """Larger weights than it is born with, which show nothing of the prompt in the picture."""
    for weights in transformer.parameters():
        if weights.ndim == 2:
            torch.nn.init.normal_(weights, std=0.2)
    torch.nn.init.normal_(transformer.proj_out.weight, std=1.0)


def _vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        sample_size=32,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def _clip_config() -> transformers.CLIPTextConfig:
    vocabulary = _clip_tokenizer().get_vocab()
    return transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )


def t5_tokenizer() -> transformers.T5Tokenizer:
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz▁"]
    return transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0, model_max_length=77
    )


def t5(width: int) -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config)

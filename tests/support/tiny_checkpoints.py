"""Tiny random checkpoints, made in a second: they compute nothing useful, exactly reproducibly."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = (
    *("draw", "a", "red", "blue", "green", "circle", "square", "left", "right", "of"),
    *("above", "below", "the", "and", "one", "two", "three"),
)
SPECIALS = ("<pad>", "<end>", "<user>", "<assistant>")
END_ID = 1
HALVES = ("Ã", "©")
"""The two bytes of "é", each a token, as a byte-level tokenizer writes them."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SAMPLE_RATE = 8000
HOP = 8
CODEBOOK = 64
CODEBOOKS = 2
CONDITION_WIDTH = 32


def make_llm(folder: Path, *, vocabulary: int = 64, tokenizer: bool = True, halves: bool = False) -> Path:
    """A Qwen3 of 3 layers × 64 with a context of 128 and, where wanted, a tokenizer with a chat template.

    With `halves` the last two tokens are halves of a character.
    """
    torch.manual_seed(7)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=0,
        initializer_range=0.3,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        make_tokenizer(vocabulary, halves=halves).save_pretrained(folder)
    return folder


def make_tokenizer(vocabulary: int, *, halves: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Byte-level words, so that any ids decode to text and single spaces survive."""
    words = [*SPECIALS, *WORDS, *(f"Ġ{word}" for word in WORDS)]
    words += [f"w{i}" for i in range(vocabulary - len(words))]
    if halves:
        words[-len(HALVES) :] = HALVES
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_diffusion(folder: Path) -> Path:
    """A Sana pipeline without text encoder: 32-wide embeddings in, images out."""
    torch.manual_seed(7)
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=CONDITION_WIDTH,
        sample_size=16,
        patch_size=1,
    )
    pipeline = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipeline.save_pretrained(folder)
    return folder


def make_painter(folder: Path) -> Path:
    """A Stable Diffusion pipeline with its own text encoder: prompts of letters in, 16x16 images out."""
    torch.manual_seed(7)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text_config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_codec(folder: Path) -> Path:
    """A DAC with two codebooks of 64 codes, 8 samples a code at 8 kHz."""
    torch.manual_seed(7)
    config = transformers.DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=16,
        upsampling_ratios=[4, 2],
        n_codebooks=CODEBOOKS,
        codebook_size=CODEBOOK,
        codebook_dim=4,
        sampling_rate=SAMPLE_RATE,
    )
    transformers.DacModel(config).save_pretrained(folder)
    return folder

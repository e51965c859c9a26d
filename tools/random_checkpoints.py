"""Random checkpoints of a language model and of a painter, tiny or larger: they compute nothing useful, exactly reproducibly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmSize:
    """The size of a Qwen3, and the type of its weights."""

    layers: int = 3
    width: int = 64
    inner: int = 96
    heads: int = 2
    head_dim: int = 32
    context: int = 128
    spread: float = 0.3
    """Standard deviation of the weights."""
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class PainterSize:
    """The size of a Stable Diffusion; a latent is two pixels wide."""

    channels: tuple[int, ...] = (8, 16)
    latents: int = 8
    """Their side in the sample that it makes by default."""


def make_llm(
    folder: Path, *, vocabulary: int = 64, tokenizer: bool = True, halves: bool = False, size: LlmSize | None = None
) -> Path:
    """A Qwen3, by default of 3 layers × 64 with a context of 128, and, where wanted, a tokenizer with a chat template.

    With `halves` the last two tokens are halves of a character.
    """
    size = size or LlmSize()
    torch.manual_seed(7)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=max(1, size.heads // 2),
        head_dim=size.head_dim,
        max_position_embeddings=size.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=0,
        initializer_range=size.spread,
    )
    transformers.Qwen3ForCausalLM(config).to(getattr(torch, size.dtype)).save_pretrained(folder)
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


def make_painter(folder: Path, size: PainterSize | None = None) -> Path:
    """A Stable Diffusion pipeline with its own text encoder: prompts of a to z in, images of 16x16 out by default."""
    import diffusers  # noqa: PLC0415 seconds, and not everywhere where language models are made

    size = size or PainterSize()
    first, *_ = channels = size.channels
    torch.manual_seed(7)
    characters = [*ascii_lowercase, *(f"{character}</w>" for character in ascii_lowercase)]
    vocabulary = {word: i for i, word in enumerate([*characters, "<|startoftext|>", "<|endoftext|>"])}
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
        block_out_channels=channels,
        layers_per_block=1,
        sample_size=size.latents,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (len(channels) - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (len(channels) - 1), "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(first, 2 * first),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * size.latents,
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

"""Tiny random checkpoints of Qwen's omni models, whole: thinker, talker and vocoder, with tokenizer and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

END, START, USER, ASSISTANT, SYSTEM = 1, 2, 3, 4, 5
_NAMED = (
    *("image_token", "audio_token", "video_token", "vision_bos_token", "vision_eos_token", "audio_bos_token"),
    "audio_eos_token",
)
IMAGE, AUDIO, VIDEO, VISION_START, VISION_END, AUDIO_START, AUDIO_END = range(6, 13)
WORDS = ("<pad>", "<|im_end|>", "<|im_start|>", "user", "assistant", "system", *(f"<|{name}|>" for name in _NAMED))
VOCABULARY = 256
PROMPT = [START, USER, 40, 41, 42, END, START, ASSISTANT, 50]
"""A user's turn of three words, and the answer begun."""
SPEAKER = "Chelsie"
_WIDTH = 64
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
_TALKER_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": _WIDTH, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512,
    "eos_token_id": END, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_SOUND = {
    "d_model": _WIDTH, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "output_dim": _WIDTH
}  # fmt: skip
_SIGHT = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": _WIDTH}
_SMALL = {
    "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip


def word(token: int) -> str:
    """The word of a token that is not a special one."""
    return f"w{token - len(WORDS)}"


def make_qwen3_omni(folder: Path) -> transformers.Qwen3OmniMoeForConditionalGeneration:
    """Qwen3-Omni: its talker listens to the thinker's layer 2."""
    torch.manual_seed(0)
    ids = {
        "audio_token_id": AUDIO, "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
        "audio_start_token_id": AUDIO_START,
    }  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    talker_text = {
        **_SMALL, **experts, "vocab_size": 1024 + 96, "head_dim": 8, "num_hidden_layers": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "rope_parameters": {**_TALKER_ROPE, "mrope_interleaved": True},
    }  # fmt: skip
    predictor = {**_SMALL, "vocab_size": 64, "head_dim": 8, "num_hidden_layers": 1, "num_code_groups": 4}
    thinker_text = {
        **_TEXT, **experts, "head_dim": 32, "moe_intermediate_size": 64,
        "rope_parameters": {**_ROPE, "mrope_interleaved": True},
    }  # fmt: skip
    config = transformers.Qwen3OmniMoeConfig(
        thinker_config={
            "text_config": thinker_text,
            "audio_config": {**_SOUND, "downsample_hidden_size": 8},
            "vision_config": {
                **_SIGHT, "depth": 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 16, "image_size": 64,
                "apply_vit_abs_pos_embed": True,
            },
            **ids, "vision_end_token_id": VISION_END, "audio_end_token_id": AUDIO_END, "user_token_id": USER,
        },
        talker_config={
            "text_config": talker_text, "code_predictor_config": predictor, "num_code_groups": 4, "thinker_hidden_size": _WIDTH,
            "accept_hidden_layer": 2, "codec_eos_token_id": 1090, "codec_nothink_id": 1091, "codec_think_bos_id": 1092,
            "codec_think_eos_id": 1093, "codec_pad_id": 1094, "codec_bos_id": 1095, "speaker_id": {"ethan": 1096},
            "spatial_merge_size": 2, **ids,
        },
        code2wav_config={
            "codebook_size": 1200, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_quantizers": 4, "upsample_rates": [2, 2], "upsampling_ratios": [2], "decoder_dim": 16,
            "sliding_window": 8,
        },
        im_start_token_id=START, im_end_token_id=END, user_token_id=USER, system_token_id=SYSTEM, assistant_token_id=ASSISTANT,
        tts_pad_token_id=200, tts_bos_token_id=201, tts_eos_token_id=202, enable_audio_output=True,
    )  # fmt: skip
    model = transformers.Qwen3OmniMoeForConditionalGeneration(config).eval().float()
    _save(model, folder)
    return model


def make_qwen25_omni(folder: Path) -> transformers.Qwen2_5OmniForConditionalGeneration:
    """Qwen2.5-Omni, with one speaker."""
    torch.manual_seed(0)
    indices = {"audio_token_index": AUDIO, "image_token_index": IMAGE, "video_token_index": VIDEO}
    edges = {
        "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END, "audio_start_token_id": AUDIO_START,
        "audio_end_token_id": AUDIO_END,
    }  # fmt: skip
    config = transformers.Qwen2_5OmniConfig(
        thinker_config={
            "text_config": {**_TEXT, "rope_parameters": _ROPE}, "audio_config": _SOUND, "user_token_id": USER,
            "vision_config": {**_SIGHT, "depth": 1, "fullatt_block_indexes": [0]}, **indices, **edges,
        },
        talker_config={
            **_SMALL, "vocab_size": 256, "embedding_size": _WIDTH, "head_dim": 6, "num_hidden_layers": 2,
            "rope_parameters": {**_TALKER_ROPE, "mrope_section": [1, 1, 1]}, "tts_text_start_token_id": 210,
            "tts_text_end_token_id": 211, "tts_text_pad_token_id": 212, "tts_codec_start_token_id": 93,
            "tts_codec_end_token_id": 94, "tts_codec_pad_token_id": 92, "tts_codec_mask_token_id": 96, **indices, **edges,
        },
        token2wav_config={
            "dit_config": {
                "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16, "emb_dim": 16,
                "enc_emb_dim": 8, "enc_dim": 8, "enc_channels": [8, 8, 8, 8, 24],
                "enc_attention_channels": 4, "enc_res2net_scale": 2, "enc_se_channels": 4,
                "num_embeds": 257, "mel_dim": 80,
                "dropout": 0.0, "look_ahead_layers": [1], "look_backward_layers": [0], "max_position_embeddings": 512,
            },
            "bigvgan_config": {
                "mel_dim": 80, "upsample_initial_channel": 16, "resblock_kernel_sizes": [3],
                "resblock_dilation_sizes": [[1, 3, 5]], "upsample_rates": [5, 3], "upsample_kernel_sizes": [11, 7],
            },
        },
    )  # fmt: skip
    model = transformers.Qwen2_5OmniForConditionalGeneration(config).eval().float()
    _save(model, folder)
    speakers = {SPEAKER: {"bos_token": 213, "cond": torch.randn(1, 8), "ref_mel": torch.randn(1, 30, 80)}}
    torch.save(speakers, folder / "spk_dict.pt")
    model.load_speakers(folder / "spk_dict.pt")
    return model


def save_processor(folder: Path, kind: str) -> None:
    """The model's processor, which vLLM asks for; needs torchvision."""
    getattr(transformers, kind)(
        image_processor=transformers.Qwen2VLImageProcessor(), video_processor=transformers.Qwen2VLVideoProcessor(),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder), chat_template="{{ messages }}",
    ).save_pretrained(folder)  # fmt: skip


def _save(model: Any, folder: Path) -> None:
    for weights in model.thinker.model.parameters():  # random, but not so small that all is a tie
        if weights.dim() > 1:
            weights.data.mul_(6)
    model.save_pretrained(folder)
    words = {word: number for number, word in enumerate((*WORDS, *(f"w{i}" for i in range(VOCABULARY - len(WORDS)))))}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {name: f"<|{name}|>" for name in _NAMED}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>", extra_special_tokens=named
    )
    tokenizer.save_pretrained(folder)

"""Tiny random checkpoints of the classes of transformers that speak, play and listen. Imports torch; seconds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

RATE = 8000
MIMI: dict[str, Any] = {
    "model_type": "mimi", "audio_channels": 1, "hidden_size": 16, "num_filters": 8, "num_residual_layers": 1,
    "upsampling_ratios": [4, 2], "codebook_size": 64, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
    "upsample_groups": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 16, "sliding_window": 4, "num_quantizers": 4, "num_semantic_quantizers": 1, "use_cache": False,
    "sampling_rate": RATE, "frame_rate": 500,
}  # fmt: skip


def make_vits(folder: Path) -> Path:
    """VITS with two speakers and a tokenizer of its own class: one id a character."""
    torch.manual_seed(1)
    config = transformers.VitsConfig(
        vocab_size=38, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
        spectrogram_bins=9, upsample_initial_channel=16, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], prior_encoder_num_flows=1, num_speakers=2,
        speaker_embedding_size=8, posterior_encoder_num_wavenet_layers=1, prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1, duration_predictor_flow_bins=4, depth_separable_num_layers=1,
        duration_predictor_filter_channels=16, sampling_rate=RATE,
    )  # fmt: skip
    transformers.VitsModel(config).save_pretrained(folder)
    letters = "_ abcdefghijklmnopqrstuvwxyz'-?!.,0123"
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    transformers.VitsTokenizer(str(vocabulary), pad_token="_", unk_token="'", phonemize=False).save_pretrained(folder)
    return folder


def make_speecht5(folder: Path, **config_args: Any) -> tuple[Path, Path]:
    """SpeechT5 without a tokenizer, and its vocoder."""
    torch.manual_seed(2)
    config = transformers.SpeechT5Config(
        vocab_size=64, hidden_size=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, speech_decoder_prenet_units=8,
        speaker_embedding_dim=8, speech_decoder_postnet_units=8, **config_args,
    )  # fmt: skip
    transformers.SpeechT5ForTextToSpeech(config).save_pretrained(folder / "model")
    vocoder = transformers.SpeechT5HifiGanConfig(model_in_dim=80, upsample_initial_channel=16, sampling_rate=16_000)
    transformers.SpeechT5HifiGan(vocoder).save_pretrained(folder / "vocoder")
    return folder / "model", folder / "vocoder"


def make_musicgen(folder: Path) -> Path:
    """MusicGen in mono, with a tokenizer of words."""
    torch.manual_seed(3)
    text = transformers.T5Config(vocab_size=64, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    codec = transformers.EncodecConfig(
        hidden_size=16, num_filters=8, num_residual_layers=1, upsampling_ratios=[4, 2], codebook_size=32, codebook_dim=16,
        audio_channels=1, num_lstm_layers=1, target_bandwidths=[1000.0], sampling_rate=RATE,
    )  # fmt: skip
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=32, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, num_codebooks=4,
        pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    config = transformers.MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict()
    )
    model = transformers.MusicgenForConditionalGeneration(config)
    model.generation_config.update(decoder_start_token_id=32, pad_token_id=32, max_new_tokens=12, do_sample=False)
    model.save_pretrained(folder)
    _words().save_pretrained(folder)
    return folder


def make_csm(folder: Path) -> Path:
    """CSM with four codebooks and its Mimi codec."""
    torch.manual_seed(4)
    depth = {
        "num_codebooks": 4, "backbone_hidden_size": 32, "vocab_size": 35, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 4,
    }  # fmt: skip
    config = transformers.CsmConfig(
        num_codebooks=4, vocab_size=35, text_vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, bos_token_id=1,
        eos_token_id=2, pad_token_id=3, codebook_pad_token_id=33, codebook_eos_token_id=32, audio_token_id=60,
        audio_eos_token_id=61, depth_decoder_config=depth, codec_config=MIMI,
    )  # fmt: skip
    model = transformers.CsmForConditionalGeneration(config)
    model.generation_config.update(max_new_tokens=24, do_sample=False)
    model.depth_decoder.generation_config.update(do_sample=False)
    model.save_pretrained(folder)
    _words().save_pretrained(folder)
    return folder


def make_dia(folder: Path) -> Path:
    """Dia with nine codebooks, its tokenizer of bytes, and the codec that its processor names."""
    torch.manual_seed(6)
    codec = transformers.DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[4, 2], decoder_hidden_size=16, upsampling_ratios=[2, 4], n_codebooks=9,
        codebook_size=1024, codebook_dim=4, sampling_rate=RATE, hidden_size=32,
    )  # fmt: skip
    transformers.DacModel(codec).save_pretrained(folder / "codec")
    attention = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.DiaConfig(
        encoder_config={**attention, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 128},
        decoder_config={
            **attention, "hidden_size": 16, "intermediate_size": 16, "cross_num_attention_heads": 2, "cross_head_dim": 8,
            "cross_num_key_value_heads": 2, "cross_hidden_size": 16, "max_position_embeddings": 128,
        },
    )  # fmt: skip
    model = transformers.DiaForConditionalGeneration(config)
    model.generation_config.update(
        max_new_tokens=40, do_sample=False, bos_token_id=1026, eos_token_id=1024, pad_token_id=1025,
        decoder_start_token_id=1026,
    )  # fmt: skip
    model.save_pretrained(folder)
    transformers.DiaProcessor(
        transformers.DiaFeatureExtractor(sampling_rate=RATE, hop_length=8), transformers.DiaTokenizer(),
        transformers.DacModel.from_pretrained(folder / "codec"),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_whisper(folder: Path) -> Path:
    """Whisper for two languages, with its tokenizer and features."""
    torch.manual_seed(5)
    marks = [
        "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
        "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>", *(f"<|{step * 0.02:.2f}|>" for step in range(1501)),
    ]  # fmt: skip
    words = {mark: number for number, mark in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = transformers.WhisperTokenizer(vocab=words, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.save_pretrained(folder)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    end = ids["<|endoftext|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_target_positions=64, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"], suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=ids["<|startoftranscript|>"],
        is_multilingual=True, lang_to_id={"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"], prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50, alignment_heads=[[0, 0], [0, 1]], return_timestamps=False, max_length=40,
        suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def _words() -> Any:
    """A tokenizer of a few words, one id each."""
    text = "a quick brown fox jumps over the lazy dog and sings"
    known = ["<pad>", "<s>", "</s>", "<unk>", "[0]the", "[1]the", *text.split()]
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(known)}, "<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )

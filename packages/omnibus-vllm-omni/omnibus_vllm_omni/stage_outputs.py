"""Outputs of stages of vLLM-Omni: as named values of ours, and back, as its process functions read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm_omni.distributed.omni_connectors.utils.serialization import OmniSerializer

DEFAULT_RATE = 24_000
"""Hz of sound whose model does not say, as vLLM-Omni's own server has it."""
KINDS: Mapping[str, str] = {
    "text": "text", "token_ids": "tokens", "prompt_token_ids": "tokens", "image": "image", "audio": "audio",
    "sample_rate": "json", "video": "video", "fps": "json", "multimodal_output": "tensor", "payload": "tensor",
}  # fmt: skip
"""The outputs that a stage can have. `payload` and `multimodal_output` are bytes of vLLM-Omni's own serializer, as uint8."""


class Gathered:
    """What the outputs of a request, which come stage by stage and piece by piece, are together."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens: list[int] = []
        self.prompt_tokens: list[int] = []
        self.finish_reason = "stop"
        self._media: dict[str, Any] = {}
        self._pictures: dict[str, list[np.ndarray]] = {}

    def add(self, output: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Take one in; yields the text and the tokens that are new."""
        if output.prompt_token_ids and not self.prompt_tokens:
            self.prompt_tokens = [int(token) for token in output.prompt_token_ids]
        if output.images:
            self._pictures[output.final_output_type] = [_pixels(image) for image in output.images]
        for part in output.outputs[:1]:
            if part.finish_reason:
                self.finish_reason = part.finish_reason
            if output.final_output_type != "audio" and (part.text or part.token_ids):
                self.texts.append(part.text)
                self.tokens.extend(part.token_ids)
                yield part.text, tuple(part.token_ids)
        _merge(self._media, output.multimodal_output or {})

    def values(self) -> dict[str, Any]:
        """The outputs of the stage."""
        values: dict[str, Any] = {}
        media = dict(self._media)
        if self.tokens or not (self._pictures or "audio" in media):
            values |= {"text": "".join(self.texts), "token_ids": self.tokens}
            values |= {"prompt_token_ids": self.prompt_tokens}
        for modality, pictures in self._pictures.items():
            values["video" if modality == "video" else "image"] = np.stack(pictures)
        if (audio := media.pop("audio", None)) is not None:
            values |= {"audio": _samples(audio), "sample_rate": _rate(media)}
        if media:
            values["multimodal_output"] = np.frombuffer(OmniSerializer.serialize(media), np.uint8)
        return values


def from_values(rid: str, values: Mapping[str, Any], prompt: Any) -> Any:
    """The attributes of a RequestOutput that the process functions of the registry read, and no others."""
    tokens = [int(token) for token in values.get("token_ids", ())]
    packed = values.get("multimodal_output")
    media = OmniSerializer.deserialize(bytes(packed)) if packed is not None else {}
    text = values.get("text", "")
    completion = SimpleNamespace(
        index=0, text=text, cumulative_text=text, token_ids=tokens, cumulative_token_ids=tokens,
        multimodal_output=media, finish_reason="stop", stop_reason=None, hidden_states=None,
    )  # fmt: skip
    return SimpleNamespace(
        request_id=rid, prompt=prompt, prompt_token_ids=[int(token) for token in values.get("prompt_token_ids", ())],
        outputs=[completion], finished=True, multimodal_output=media, stage_id=None, images=[], error=None,
    )  # fmt: skip


def attach_payload(prompt: dict[str, Any], packed: Any, *, generates_codes: bool) -> None:
    """Give a prompt the payload as vLLM-Omni's own connector would deliver it: the runner's buffer, and the prompt's length."""
    payload = OmniSerializer.deserialize(bytes(packed))
    payload = payload.get("engine_inputs", payload)
    prompt["additional_information"] = {**(prompt.get("additional_information") or {}), **payload}
    codes = (payload.get("codes") or {}).get("audio")
    length = (payload.get("meta") or {}).get("next_stage_prompt_len")
    if codes is not None and generates_codes:
        prompt["prompt_token_ids"] = [int(code) for code in np.asarray(codes).reshape(-1)]
    elif length is not None:
        prompt["prompt_token_ids"] = [0] * int(length)


def _merge(into: dict[str, Any], more: Any) -> None:
    for key, value in dict(more).items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        elif value is not None:
            into[key] = value


def _pixels(image: Any) -> np.ndarray:
    """A picture as uint8 (H, W, 3); frames as (F, H, W, 3)."""
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    return array if array.dtype == np.uint8 else (np.clip(array, 0.0, 1.0) * 255).round().astype(np.uint8)


def _samples(audio: Any) -> np.ndarray:
    pieces = audio if isinstance(audio, list | tuple) else [audio]
    return np.concatenate([np.asarray(piece, np.float32).reshape(-1) for piece in pieces])


def _rate(media: dict[str, Any]) -> int:
    given = np.asarray(media.pop("sr", media.pop("sample_rate", DEFAULT_RATE))).reshape(-1)
    return int(given[0])

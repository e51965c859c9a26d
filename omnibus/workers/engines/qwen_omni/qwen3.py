"""Talker and vocoder of Qwen3-Omni: frames of codes leave as they are made, and become sound a part at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import torch
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeCode2Wav,
    Qwen3OmniMoePreTrainedModel,
    Qwen3OmniMoeTalkerForConditionalGeneration,
)

from omnibus.errors import EngineRejected
from omnibus.workers.engines.protocol import Chunk, Outputs, StageInput
from omnibus.workers.engines.qwen_omni.stand_ins import (
    SAMPLE_RATE,
    CodesTaker,
    OwnParts,
    ReplayedThinker,
    Thought,
    load_parts,
    talker_arguments,
)

WHOLE_CHUNK, WHOLE_CONTEXT = 300, 25
"""Codes that transformers' `generate` decodes at a time, and before them."""


class _Qwen3TalkerParts(OwnParts, Qwen3OmniMoeForConditionalGeneration):  # type: ignore[misc]  # transformers has no types here
    """The whole model with stand-ins for all but the talker."""

    _keys_to_ignore_on_load_unexpected = (r"^thinker\.", r"^code2wav\.")

    def __init__(self, config: Qwen3OmniMoeConfig) -> None:
        Qwen3OmniMoePreTrainedModel.__init__(self, config)
        talker = config.talker_config
        self.thinker = ReplayedThinker(config.thinker_config.text_config, talker.accept_hidden_layer)
        self.talker = Qwen3OmniMoeTalkerForConditionalGeneration._from_config(talker)  # noqa: SLF001 as theirs makes it
        self.code2wav, self.has_talker = CodesTaker(), True
        self.post_init()


class _Qwen3VocoderParts(OwnParts, Qwen3OmniMoePreTrainedModel):  # type: ignore[misc]
    """The vocoder alone, under the name that it has in the checkpoint."""

    config_class = Qwen3OmniMoeConfig
    _keys_to_ignore_on_load_unexpected = (r"^thinker\.", r"^talker\.")

    def __init__(self, config: Qwen3OmniMoeConfig) -> None:
        super().__init__(config)
        self.code2wav = Qwen3OmniMoeCode2Wav._from_config(config.code2wav_config)  # noqa: SLF001
        self.post_init()


class Qwen3Talker:
    """Makes codes (frames, codebooks) of what the thinker's stage made, `chunk_frames` of them a chunk. One request at a time."""

    outputs: Mapping[str, str] = {"codes": "tensor"}

    def __init__(
        self, checkpoint: str, device: str | None = None, dtype: str | None = None, chunk_frames: int = 25
    ) -> None:
        self._model = load_parts(_Qwen3TalkerParts, checkpoint, device, dtype)
        self._chunk_frames = chunk_frames
        self._thread = ThreadPoolExecutor(1, "qwen3-talker")

    def __call__(self, stage_input: StageInput, sampling: Mapping[str, Any]) -> Iterator[Chunk]:
        config = self._model.config.thinker_config
        thought = Thought.of(stage_input)
        thought.check_speakable(config.image_token_id, config.video_token_id)
        arguments = talker_arguments(sampling)
        speakers = self._model.config.talker_config.speaker_id
        if arguments.get("speaker", "Ethan").lower() not in speakers:
            raise EngineRejected(f"no such speaker; there are {', '.join(speakers)}", param="speaker")
        held: list[np.ndarray] = []
        for frame in self._frames(thought, arguments):
            held.append(frame)
            if len(held) == self._chunk_frames:
                yield Chunk(outputs={"codes": np.stack(held)})
                held = []
        if held:
            yield Chunk(outputs={"codes": np.stack(held)})

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _frames(self, thought: Thought, arguments: Mapping[str, Any]) -> Iterator[np.ndarray]:
        """Each frame when the talker has made it: at most as many wait as it may make."""
        frames: SimpleQueue[np.ndarray | None] = SimpleQueue()
        given_up = Event()

        def take(_talker: torch.nn.Module, _inputs: object, output: Any) -> None:
            if given_up.is_set():
                raise InterruptedError
            if output.hidden_states[-1] is not None:
                frames.put(output.hidden_states[-1][0].cpu().numpy())

        self._model.thinker.thought = thought
        prompt = torch.tensor([thought.prompt], device=self._model.device)
        hook = self._model.talker.register_forward_hook(take)
        work = self._thread.submit(self._model.generate, prompt, return_audio=True, **arguments)
        work.add_done_callback(lambda _work: frames.put(None))
        try:
            while (frame := frames.get()) is not None:
                yield frame
            work.result()
        finally:
            given_up.set()
            wait([work])
            hook.remove()


class Qwen3Vocoder:
    """Makes sound of codes.

    Of a request that streams, `chunk_frames` frames at a time with `context_frames` before them; of any other, all at once, as
    transformers' `generate` does.
    """

    outputs: Mapping[str, str] = {"audio": "audio", "sample_rate": "json"}

    def __init__(
        self,
        checkpoint: str,
        device: str | None = None,
        dtype: str | None = None,
        chunk_frames: int = 25,
        context_frames: int = 25,
    ) -> None:
        self._decoder = load_parts(_Qwen3VocoderParts, checkpoint, device, dtype).code2wav
        self._chunk_frames, self._context_frames = chunk_frames, context_frames

    def __call__(self, stage_input: StageInput) -> Iterator[Chunk]:
        parts = next(iter(stage_input.flows.values()), None) or stage_input.sources.values()
        if stage_input.request.stream:
            yield from map(_sound, self._pieces(parts))
            return
        codes = np.concatenate([part["codes"] for part in parts])
        with torch.inference_mode():
            whole = self._decoder.chunked_decode(self._batch(codes), WHOLE_CHUNK, WHOLE_CONTEXT)
        yield _sound(whole)

    def _pieces(self, parts: Iterable[Outputs]) -> Iterator[torch.Tensor]:
        """The sound of one chunk after the other.

        A decoding ends some samples early, wherever it is cut: each piece begins where the one before it has ended.
        """
        decoded = sent = 0
        for codes in _growing(parts, self._chunk_frames):
            start = max(0, decoded - self._context_frames)
            with torch.inference_mode():
                wave = self._decoder(self._batch(codes[start:]))
            wave = wave[..., sent - start * int(self._decoder.total_upsample) :]
            decoded, sent = len(codes), sent + wave.shape[-1]
            yield wave

    def _batch(self, codes: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(codes.T.copy())[None].to(self._decoder.device)


def _growing(parts: Iterable[Outputs], size: int) -> Iterator[np.ndarray]:
    """All codes so far, each time that there are `size` more, and at the end."""
    codes: np.ndarray | None = None
    given = 0
    for part in parts:
        codes = part["codes"] if codes is None else np.concatenate((codes, part["codes"]))
        while len(codes) - given >= size:
            given += size
            yield codes[:given]
    if codes is not None and len(codes) > given:
        yield codes


def _sound(wave: torch.Tensor) -> Chunk:
    return Chunk(outputs={"audio": wave.float().cpu().numpy().reshape(-1), "sample_rate": SAMPLE_RATE})

"""Models of transformers that speak a text, or play it, class by class. Imports transformers and torch; all here blocks."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import transformers
from msgspec import Meta
from transformers.generation.streamers import BaseStreamer

from omnibus.errors import ContextExceeded, EmptyPrompt, EngineRejected, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.envelope import TokenUsage
from omnibus.workers.engines.checkpoints import loading, resolve_model
from omnibus.workers.engines.protocol import Chunk, EngineInput, Finished, Job, Outputs
from omnibus.workers.engines.transformers.generation_engine import Send, Step
from omnibus.workers.engines.transformers.loaded_model import load_model, running, whole_number
from omnibus.workers.engines.transformers.parts import Part, Parts

Sending = Callable[[np.ndarray], None]
_Fraction = Annotated[float, Meta(gt=0, le=1)]
_Positive = Annotated[float, Meta(gt=0, le=1000)]
_Natural = Annotated[float, Meta(ge=0, le=1000)]
_Rate = Annotated[float, Meta(ge=0.1, le=10)]
_Noise = Annotated[float, Meta(ge=0, le=2)]
"""More than these of a VITS would make a word last for hours: nothing else bounds its memory."""
_Count = Annotated[int, Meta(ge=0, le=1 << 31)]
SEED: Mapping[str, Any] = {"seed": Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]}
SAMPLING: Mapping[str, Any] = {
    "do_sample": bool, "temperature": _Natural, "top_k": _Count, "top_p": _Fraction, "repetition_penalty": _Positive,
}  # fmt: skip
MOST_CHARACTERS = 4096
"""Characters of a text, or its token ids, unless `max_characters` says otherwise; as OpenAI's API has it. Some models cannot be
interrupted."""
TOKENS: Mapping[str, Any] = {"max_new_tokens": Annotated[int, Meta(ge=1)], "min_new_tokens": _Count}


def checked(sampling: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a job that are set; raises EngineRejected for unknown ones, and for values of another kind."""
    found = {}
    for name, value in sampling.items():
        if name not in kinds:
            raise EngineRejected(f"unknown parameter {name!r}; there are {', '.join(sorted(kinds))}", param=name)
        if value is None:
            continue
        try:
            found[name] = msgspec.convert(value, kinds[name])
        except msgspec.ValidationError as error:
            raise EngineRejected(f"{name}: {error}", param=name) from error
    return found


def seeded(options: dict[str, Any]) -> None:
    """Take the seed out of a job's parameters, and begin its random numbers. One job draws any at a time."""
    torch.manual_seed(options.pop("seed", secrets.randbits(63)))


class Stepping(transformers.StoppingCriteria):  # type: ignore[misc]
    """Never ends a generation by itself; its step may."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        self._step()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Speaker:
    """A text, or token ids of the checkpoint's tokenizer, in; a sound out. A subclass is one class of transformers."""

    parameters: Mapping[str, Any] = SEED
    vocabulary = "vocab_size"
    positions: str | None = None
    """The place, in the model's config, of how many tokens a text may have."""

    def __init__(self, stage: StageSpec, kind: str) -> None:
        self._model = load_model(stage, kind)
        self._tokenizer = _tokenizer(stage)
        self._most = whole_number(stage.engine_args, "max_frames", 1) or 100_000
        self._most_characters = whole_number(stage.engine_args, "max_characters", 1) or MOST_CHARACTERS
        self.sample_rate = self._rate()

    def run(self, job: Job, step: Step, send: Send) -> Finished:
        """A Chunk for each part of a sound that is made in parts, and Finished with the whole."""
        ids, options = self._ids(job.engine_input), checked(job.sampling, self.parameters)
        if options.get("max_new_tokens", 1) > self._most:
            raise EngineRejected(f"max_new_tokens may be up to {self._most}", param="max_new_tokens")
        given = self._given(job.engine_input, options)
        step()
        with running(self._model):
            seeded(options)
            samples = self._spoken(
                ids, {**options, **given}, step, lambda part: send(Chunk(outputs=self._outputs(part)))
            )
        step()
        return Finished(outputs=self._outputs(samples), usage=TokenUsage(ids.shape[1], 0))

    def _rate(self) -> int:
        return int(self._model.config.sampling_rate)

    def _given(self, engine_input: EngineInput, _options: dict[str, Any]) -> Mapping[str, Any]:
        """Named inputs beside the text; raises EngineRejected for those that the class does not take."""
        other = next((name for name in engine_input.values if name not in ("prompt", "text", "token_ids")), None)
        if other is not None:
            raise EngineRejected(f"{type(self._model).__name__} takes no {other!r}", param=other)
        return {}

    def _spoken(self, ids: torch.Tensor, options: Mapping[str, Any], step: Step, send: Sending) -> np.ndarray:
        """Samples (frames,) or (channels, frames) float32, of ids (1, T); parts are sent as they are made, where they are."""
        raise NotImplementedError

    def _ids(self, given: EngineInput) -> torch.Tensor:
        text = given.text if given.text is not None else given.values.get("prompt")
        read = text if isinstance(text, str) and self._tokenizer is not None else given.token_ids
        if read is not None and len(read) > self._most_characters:
            what = "characters" if read is text else "token ids"
            raise EngineRejected(f"a text may have {self._most_characters} {what}, not {len(read)}", param="prompt")
        if isinstance(text, str) and self._tokenizer is not None:
            if not text.strip():
                raise EmptyPrompt(param="prompt")
            ids = list(self._tokenizer(self._prompt(text)).input_ids)
            if not ids:
                raise EngineRejected("the checkpoint's tokenizer knows nothing of this text", param="prompt")
        elif given.token_ids is not None:
            ids = list(given.token_ids)
        else:
            raise EngineRejected("the checkpoint has no tokenizer: give token ids", param="prompt")
        size = attrgetter(self.vocabulary)(self._model.config)
        if not ids or not 0 <= min(ids) <= max(ids) < size:
            raise EngineRejected(f"ids run from 0 to {size - 1}, and a text has at least one", param="prompt")
        if self.positions is not None and len(ids) > (most := attrgetter(self.positions)(self._model.config)):
            raise ContextExceeded(
                f"the model reads {most} tokens of a text, and this one has {len(ids)}", param="prompt"
            )
        return torch.tensor([ids], device=self._model.device)

    def _prompt(self, text: str) -> str:
        """The text as the class's tokenizer takes it."""
        return text

    def _outputs(self, samples: np.ndarray) -> Outputs:
        return {"audio": samples, "sample_rate": self.sample_rate}

    def _generated(self, ids: torch.Tensor, options: Mapping[str, Any], step: Step, **more: Any) -> Any:
        """The output of the class's `generate`."""
        options = dict(options)
        for prefix in ("", "depth_decoder_"):
            if options.get(f"{prefix}temperature") == 0:  # the convention of other engines
                del options[f"{prefix}temperature"]
                options[f"{prefix}do_sample"] = False
        criteria = transformers.StoppingCriteriaList([Stepping(step)])
        return self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), stopping_criteria=criteria, **options, **more
        )


class VitsSpeaker(Speaker):
    """VITS and MMS-TTS: the whole sound in one pass."""

    parameters: Mapping[str, Any] = {
        **SEED, "speaker_id": _Count, "speaking_rate": _Rate, "noise_scale": _Noise, "noise_scale_duration": _Noise,
    }  # fmt: skip

    def _given(self, engine_input: EngineInput, options: dict[str, Any]) -> Mapping[str, Any]:
        speakers = self._model.config.num_speakers
        if (number := options.get("speaker_id")) is not None and number >= speakers:
            raise EngineRejected(f"the model has {speakers} speakers, from 0", param="speaker_id")
        return super()._given(engine_input, options)

    def _spoken(self, ids: torch.Tensor, options: Mapping[str, Any], _step: Step, _send: Sending) -> np.ndarray:
        model, rate = self._model, options.get("speaking_rate", 1.0)
        # Two ids a character, of which one is a blank. Its memory grows with how long the sound lasts.
        if ids.shape[1] / rate > 2 * self._most_characters + 1:
            most = int(self._most_characters * rate)
            raise EngineRejected(f"at this rate a text may have {most} characters", param="speaking_rate")
        for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
            setattr(model, name, options.get(name, getattr(model.config, name)))
        made = model(input_ids=ids, attention_mask=torch.ones_like(ids), speaker_id=options.get("speaker_id"))
        return _array(made.waveform[0, : int(made.sequence_lengths[0])])


class SpeechT5Speaker(Speaker):
    """SpeechT5 with its vocoder; the speaker is an embedding."""

    parameters: Mapping[str, Any] = {
        **SEED, "speaker_embeddings": list[float], "threshold": _Fraction, "minlenratio": _Natural, "maxlenratio": _Natural,
    }  # fmt: skip
    positions = "max_text_positions"

    def __init__(self, stage: StageSpec, kind: str) -> None:
        if not isinstance(path := stage.engine_args.get("vocoder"), str):
            raise PipelineError("SpeechT5 needs a vocoder: name its checkpoint", field="engine_args.vocoder")
        vocoder = resolve_model(path)
        with loading(vocoder):
            self._vocoder = transformers.SpeechT5HifiGan.from_pretrained(vocoder).eval()
        super().__init__(stage, kind)
        self._vocoder.to(self._model.device)

    def _rate(self) -> int:
        return int(self._vocoder.config.sampling_rate)

    def _given(self, engine_input: EngineInput, options: dict[str, Any]) -> Mapping[str, Any]:
        values, name, width = dict(engine_input.values), "speaker_embeddings", self._model.config.speaker_embedding_dim
        vector = np.asarray(values.pop(name, options.pop(name, ())), np.float32)
        if vector.shape != (width,) or not np.isfinite(vector).all():
            raise EngineRejected(f"the speaker is {width} numbers, not {vector.shape}", param=name)
        super()._given(EngineInput(values=values), options)
        return {name: torch.from_numpy(vector)[None].to(self._model.device)}

    def _spoken(self, ids: torch.Tensor, options: Mapping[str, Any], _step: Step, _send: Sending) -> np.ndarray:
        longest = self._longest(ids.shape[1], options)
        return _array(self._model.generate_speech(ids, vocoder=self._vocoder, **{**options, "maxlenratio": longest}))

    def _longest(self, tokens: int, options: Mapping[str, Any]) -> float:
        """The `maxlenratio` of a text: its steps have positions, too. Raises EngineRejected for ratios beyond them."""
        steps = self._model.config.max_speech_positions
        most = steps * self._model.config.reduction_factor / tokens
        for name in ("minlenratio", "maxlenratio"):
            if options.get(name, 0) > most:
                message = f"{name} may be {most:.3g} for {tokens} tokens: the model speaks in {steps} steps at most"
                raise EngineRejected(message, param=name)
        return float(options.get("maxlenratio", min(20.0, most)))  # 20 is the method's own default


class MusicgenSpeaker(Speaker):
    """MusicGen: music by its description."""

    parameters: Mapping[str, Any] = {**SEED, **SAMPLING, **TOKENS, "guidance_scale": _Natural}
    vocabulary = "text_encoder.vocab_size"

    def _spoken(self, ids: torch.Tensor, options: Mapping[str, Any], step: Step, _send: Sending) -> np.ndarray:
        sound = self._generated(ids, options, step)[0]
        return _array(sound[0] if len(sound) == 1 else sound)


class CsmSpeaker(Speaker):
    """CSM: frames of codes, which its codec decodes while more are made where `chunk_frames` says so."""

    parameters: Mapping[str, Any] = {
        **SEED, **SAMPLING, **TOKENS, **{f"depth_decoder_{name}": kind for name, kind in SAMPLING.items()},
    }  # fmt: skip
    vocabulary = "text_vocab_size"
    positions = "max_position_embeddings"

    def __init__(self, stage: StageSpec, kind: str) -> None:
        args = stage.engine_args
        self._first = whole_number(args, "first_frames", 1)
        self._chunk, self._context = whole_number(args, "chunk_frames", 1), whole_number(args, "context_frames", 0)
        super().__init__(stage, kind)

    def _rate(self) -> int:
        return int(self._model.config.codec_config.sampling_rate)

    def _prompt(self, text: str) -> str:
        """Its texts begin with the number of the speaker."""
        return text if text.startswith("[") else f"[0]{text}"

    def _spoken(self, ids: torch.Tensor, options: Mapping[str, Any], step: Step, send: Sending) -> np.ndarray:
        if self._chunk is None:
            return _array(self._generated(ids, options, step, output_audio=True)[0])
        pieces = list[np.ndarray]()

        def decode(part: Part) -> None:
            codes = torch.from_numpy(part.array)[None].to(self._model.device)
            sound = _array(self._model.codec_model.decode(codes).audio_values[0, 0])
            pieces.append(part.kept(sound, None))
            send(pieces[-1])

        # The codec looks back only: nothing behind a part changes it.
        made = _Frames(
            Parts(1, self._chunk, self._context or 0, behind=0, first=self._first),
            decode,
            self._model.config.codebook_eos_token_id,
        )
        self._generated(ids, options, step, streamer=made)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


class _Frames(BaseStreamer):  # type: ignore[misc]
    """Takes the frames of a generation as they are made, and has each part decoded when it is whole."""

    def __init__(self, parts: Parts, decode: Callable[[Part], None], end: int) -> None:
        self._parts, self._decode, self._end = parts, decode, end
        self._has_prompt = self._has_ended = False

    def put(self, value: torch.Tensor) -> None:
        """One frame (1, K); the first call brings the prompt, and the last frame may only say that it is over."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._has_ended = self._has_ended or bool((value[0] == self._end).all())
        if self._has_ended:
            return
        self._parts.add(value[0, :, None].numpy())
        for part in self._parts.ready():
            self._decode(part)

    def end(self) -> None:
        if (rest := self._parts.rest()) is not None:
            self._decode(rest)


def _tokenizer(stage: StageSpec) -> Any:
    """The checkpoint's tokenizer, None where it has none."""
    model = resolve_model(stage.model, stage.revision)
    if Path(model).is_dir() and not any(Path(model).glob("*token*.json")) and not (Path(model) / "vocab.json").exists():
        return None
    with loading(model, stage.revision):
        return transformers.AutoTokenizer.from_pretrained(model, revision=stage.revision)


def _array(samples: torch.Tensor) -> np.ndarray:
    found: np.ndarray = samples.float().cpu().numpy()
    return found

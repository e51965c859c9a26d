"""Whisper under transformers: a sound in, its text out. Imports transformers and torch; everything here blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
from msgspec import Meta

from omnibus.errors import EngineError, EngineRejected, PipelineError
from omnibus.media import sound
from omnibus.pipeline.spec import StageSpec
from omnibus.requests.request_files import naming
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.request import AudioPart, media_parts
from omnibus.wire.timed_text import TRANSCRIPT
from omnibus.workers.engines.checkpoints import loading, resolve_model
from omnibus.workers.engines.protocol import EngineInput, Finished, Job, TextDelta
from omnibus.workers.engines.transformers.generation_engine import Send, Step
from omnibus.workers.engines.transformers.loaded_model import architecture, load_model, running
from omnibus.workers.engines.transformers.speakers import SEED, Stepping, checked, seeded
from omnibus.workers.engines.transformers.timestamps import GRANULARITIES, generation_arguments, transcript_of

CLASSES = ("WhisperForConditionalGeneration",)
PARAMETERS: Mapping[str, Any] = {
    **SEED, "language": str, "prompt": str, "task": Literal["transcribe", "translate"],
    "temperature": Annotated[float, Meta(ge=0, le=2)], "max_new_tokens": Annotated[int, Meta(ge=1)],
    GRANULARITIES: frozenset[Literal["segment", "word"]],
}  # fmt: skip

_START = 4
"""Tokens before the text: its beginning, the language, the task, and that there are no timestamps."""


class Transcriber:
    """Writes down what is spoken in one sound. Outputs: `text`, the `language` where it was given, `seconds`.

    With `timestamp_granularities` the answer has the field `transcript` besides.
    """

    def __init__(self, stage: StageSpec) -> None:
        kind = str(stage.engine_args.get("model_class") or architecture(stage))
        if kind not in CLASSES:
            raise PipelineError(
                f"{kind} is none of the classes that transcribe: {', '.join(CLASSES)}", field="engine_args.model_class"
            )
        self._model = load_model(stage, kind)
        model = resolve_model(stage.model, stage.revision)
        with loading(model, stage.revision):
            self._features = transformers.AutoFeatureExtractor.from_pretrained(model, revision=stage.revision)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, revision=stage.revision)

    def run(self, job: Job, step: Step, send: Send) -> Finished:
        """The text as one delta, and Finished with it."""
        options = checked(job.sampling, PARAMETERS)
        self._check_language(options)
        self._prompt(options)
        timed = generation_arguments(options.pop(GRANULARITIES, frozenset()), self._model.generation_config)
        samples = self._samples(job.engine_input)
        step()
        with running(self._model):
            seeded(options)
            made = self._generated(samples, {**options, **timed}, step)
        tokens: list[int] = made["sequences"][0].tolist()
        text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        send(TextDelta(text=text))
        seconds = len(samples) / self._features.sampling_rate
        fields = {TRANSCRIPT: self._transcript(made, seconds)} if timed else {}
        return Finished(
            outputs={"text": text, "language": options.get("language"), "seconds": seconds},
            usage=TokenUsage(0, len(tokens)),
            fields=fields,
        )

    def _transcript(self, made: Mapping[str, Any], seconds: float) -> str:
        precision = self._features.chunk_length / self._model.config.max_source_positions
        config = self._model.generation_config
        return transcript_of(made, self._tokenizer, config, seconds, precision).encoded()

    def _generated(self, samples: np.ndarray, options: dict[str, Any], step: Step) -> Mapping[str, Any]:
        is_long = len(samples) > self._features.n_samples
        given = self._features(
            samples, sampling_rate=self._features.sampling_rate, return_tensors="pt", return_attention_mask=True,
            truncation=False, padding="longest" if is_long else "max_length",
        )  # fmt: skip
        if not self._is_multilingual:
            options.pop("task", None)
        made: Any = self._model.generate(
            given.input_features.to(self._model.device, self._model.dtype),
            attention_mask=given.attention_mask.to(self._model.device),
            stopping_criteria=transformers.StoppingCriteriaList([Stepping(step)]),
            # By timestamps the parts of a long sound follow each other.
            **{"return_timestamps": is_long, **options},
        )
        return made if isinstance(made, Mapping) else {"sequences": made}

    def _prompt(self, options: dict[str, Any]) -> None:
        """Make ids of the prompt; raises EngineRejected for one that cannot be, and where the rest holds too few tokens."""
        room = int(self._model.config.max_target_positions)
        if (prompt := options.pop("prompt", "")).strip():
            try:
                ids = self._tokenizer.get_prompt_ids(prompt, return_tensors="pt")
            except ValueError as error:
                raise EngineRejected(str(error), param="prompt") from error
            most = room // 2 - 2  # the end of a longer one counts, as with OpenAI
            ids = torch.cat([ids[:1], ids[1:][-most:]])
            options["prompt_ids"] = ids.to(self._model.device)
            room -= len(ids)
        if options.get("max_new_tokens", 0) > (most := room - _START):
            raise EngineRejected(f"the model has room for {most} tokens", param="max_new_tokens")

    @property
    def _is_multilingual(self) -> bool:
        return bool(getattr(self._model.generation_config, "is_multilingual", False))

    def _check_language(self, options: Mapping[str, Any]) -> None:
        """Refuse what a model of one language cannot do, and a language that it does not know."""
        if not self._is_multilingual:
            asked = next(
                (name for name in ("language", "task") if options.get(name, "transcribe") != "transcribe"), None
            )
            if asked is not None:
                raise EngineRejected("the model knows one language only", param=asked)
        elif (language := options.get("language")) is not None:
            known = [token.strip("<|>") for token in self._model.generation_config.lang_to_id]
            names = transformers.models.whisper.tokenization_whisper.TO_LANGUAGE_CODE
            if names.get(language.lower(), language.lower()) not in known:
                raise EngineRejected(f"the model does not know the language {language!r}", param="language")

    def _samples(self, given: EngineInput) -> np.ndarray:
        """The sound at the model's rate, (frames,) float32."""
        rate = int(self._features.sampling_rate)
        if (samples := given.values.get("audio")) is not None:
            try:
                made = int(given.values.get("sample_rate") or 0)
                return sound.mono(sound.encoded(np.asarray(samples), made), rate)
            except (EngineError, TypeError, ValueError, OverflowError) as error:
                raise EngineRejected(str(error), param="audio") from error
        files = [(where, part) for where, part in media_parts(given.messages or ()) if isinstance(part, AudioPart)]
        if len(files) != 1:
            raise EngineRejected(f"give one sound to transcribe, not {len(files)}", param="messages")
        where, part = files[0]
        with naming(where):
            return sound.mono(part.data, rate)

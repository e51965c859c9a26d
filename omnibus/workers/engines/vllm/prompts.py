"""From an EngineInput to the prompt that vLLM computes: chat template, tokeniser, media, token ids, embeddings."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from jinja2 import TemplateError
from vllm.exceptions import VLLMClientError
from vllm.inputs import EmbedsPrompt, TextPrompt, TokensPrompt
from vllm.renderers.params import ChatParams, TokenizeParams

from omnibus.errors import EngineRejected, InvalidRequest
from omnibus.media import sound
from omnibus.wire.control import PromptTokens
from omnibus.wire.request import AudioPart, ImagePart, Message, TextPart, media_parts
from omnibus.workers.engines import media
from omnibus.workers.engines.protocol import EngineInput, Job
from omnibus.workers.engines.vllm.sampling_params import rejected


class PromptRenderer:
    """Makes prompts with the engine's own renderer, in its threads."""

    def __init__(self, renderer: Any, model_config: Any, plain: ChatParams) -> None:
        """`plain` are the parameters of a chat without options."""
        self._renderer = renderer
        self._model = model_config
        self._takes, self._rate = _media_of(renderer), _rate_of(renderer)
        self._plain = plain

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return getattr(self._renderer.tokenizer, "bos_token_id", None)

    async def of(self, job: Job, given: EngineInput | None = None, chat: ChatParams | None = None) -> Any:
        """A job's prompt, or that of a part of its input: see `render`."""
        prompt = await self.render(given or job.engine_input, self._media_arguments(job), chat)
        if (salt := job.stage_input.request.cache_salt) is not None:
            prompt["cache_salt"] = salt
        return prompt

    async def tokens(
        self, job: Job, chat: ChatParams | None = None, *, special: bool | None = None, strings: bool = False
    ) -> PromptTokens:
        """The tokens of a job's prompt, of whatever length; arguments as of `AskTokens`. Raises as `render`."""
        given = job.engine_input
        self._need_tokenizer("text")
        usual = (
            self._renderer.default_cmpl_tok_params if given.messages is None else self._renderer.default_chat_tok_params
        )
        params: TokenizeParams = dataclasses.replace(
            usual, max_total_tokens=None, needs_detokenization=given.token_ids is not None,
            **({} if special is None else {"add_special_tokens": special}),
        )  # fmt: skip
        prompt = await self.render(given, self._media_arguments(job), chat, params)
        ids, tokenizer = prompt["prompt_token_ids"], self._renderer.tokenizer
        return PromptTokens(
            token_ids=tuple(ids),
            strings=tuple(await asyncio.to_thread(tokenizer.convert_ids_to_tokens, ids)) if strings else None,
            text=prompt["prompt"] if given.token_ids is not None else None,
            context=self._model.max_model_len,
        )

    async def render(
        self,
        given: EngineInput,
        media: dict[str, Any] | None = None,
        chat: ChatParams | None = None,
        tokens: TokenizeParams | None = None,
    ) -> Any:
        """A prompt ready for AsyncLLM, of the first given of messages, token ids, embeddings, text.

        `media` is for the processor of the messages' media, over what the engine's own `mm_processor_kwargs` say; `chat` are
        the parameters of a chat with options; `tokens` say how texts become tokens, by default as the model takes them.
        Raises EngineRejected for what this model cannot take, InvalidRequest for media that cannot be decoded.
        """
        try:
            if given.messages is not None:
                return await self._chat(given.messages, media, chat or self._plain, tokens)
            return await self._complete(given, tokens)
        except InvalidRequest:  # it names the field
            raise
        except (VLLMClientError, TemplateError, ValueError, TypeError, LookupError, OverflowError) as error:
            raise rejected(error, "mm_processor_kwargs" if media else None) from error

    def _media_arguments(self, job: Job) -> dict[str, Any] | None:
        """Return those of the request; the first stage must have a processor for them, later ones may."""
        given = job.stage_input.request.mm_processor_kwargs
        if not given or self._model.is_multimodal_model:
            return given or None
        if not job.stage_input.sources:
            raise EngineRejected("this model takes no media, so it has no processor", param="mm_processor_kwargs")
        return None

    def length(self, prompt: Any) -> int:
        """Tokens of a rendered prompt."""
        if prompt["type"] == "embeds":
            return int(prompt["prompt_embeds"].shape[0])
        return len(prompt["prompt_token_ids"])

    async def text(self, prompt: Any) -> str:
        """The text of a rendered prompt."""
        self._need_tokenizer("text")
        if not prompt.get("prompt"):
            ids = TokensPrompt(prompt_token_ids=prompt.get("prompt_token_ids", []))
            usual = self._renderer.default_cmpl_tok_params
            params = dataclasses.replace(usual, max_total_tokens=None, needs_detokenization=True)
            (prompt,) = await self._renderer.render_cmpl_async([ids], params)
        return str(prompt["prompt"])

    async def _chat(
        self,
        messages: Sequence[Message],
        media: dict[str, Any] | None,
        chat: ChatParams,
        tokens: TokenizeParams | None = None,
    ) -> Any:
        self._need_tokenizer("messages")
        self._check_media(messages)
        chat_messages = await asyncio.to_thread(_conversation, messages, self._rate)
        # Twice: vLLM reads the first where it finds the media, the second where it processes them.
        params = dataclasses.replace(chat, mm_processor_kwargs=media)
        extras = {"mm_processor_kwargs": media}
        _, (prompt,) = await self._renderer.render_chat_async([chat_messages], params, tokens, prompt_extras=extras)
        return prompt

    async def _complete(self, given: EngineInput, tokens: TokenizeParams | None = None) -> Any:
        if given.token_ids is not None:
            prompt: Any = TokensPrompt(prompt_token_ids=self._checked_ids(given.token_ids))
        elif given.embeds is not None:
            prompt = EmbedsPrompt(prompt_embeds=self._checked_embeds(given.embeds))
        elif given.text is not None:
            self._need_tokenizer("text")
            prompt = TextPrompt(prompt=given.text)
        else:
            raise EngineRejected("this stage needs messages, token ids, embeddings or text", param="prompt")
        (rendered,) = await self._renderer.render_cmpl_async([prompt], tokens)
        return rendered

    def _check_media(self, messages: Sequence[Message]) -> None:
        """Refuse files that the model does not take before anything is unpacked."""
        for where, _ in media_parts(messages):
            kind = where.rpartition(".")[-1]
            if kind not in self._takes:
                taken = f"only {', '.join(sorted(self._takes))}" if self._takes else "text alone"
                raise EngineRejected(f"this model takes no {kind}, {taken}", param=where)

    def _need_tokenizer(self, what: str) -> None:
        if self._renderer.tokenizer is None:
            raise EngineRejected(f"this stage has no tokenizer: give it token ids, not {what}", param="prompt")

    def _checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        ids = [int(token) for token in token_ids]
        vocabulary = self._model.get_vocab_size()
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise EngineRejected(f"token id {wrong} is outside the vocabulary of {vocabulary}", param="token_ids")
        return ids

    def _checked_embeds(self, embeds: np.ndarray) -> torch.Tensor:
        width = self._model.get_inputs_embeds_size()
        if embeds.ndim != 2 or embeds.shape[1] != width or not np.issubdtype(embeds.dtype, np.floating):
            wanted = f"float of shape (T, {width})"
            raise EngineRejected(f"embeddings must be {wanted}, not {embeds.dtype} {embeds.shape}", param="embeds")
        # A copy: arrays off the wire are read-only, which torch cannot express.
        return torch.from_numpy(np.array(embeds)).to(self._model.dtype)


def _media_of(renderer: Any) -> frozenset[str]:
    """Kinds of files that the model takes."""
    limits = {} if renderer.mm_processor is None else renderer.mm_processor.info.allowed_mm_limits
    return frozenset(kind for kind, most in limits.items() if most)


def _rate_of(renderer: Any) -> int | None:
    """Rate of the sound that the model's processor works on, Hz; None where it does not say."""
    resampler = getattr(getattr(renderer.mm_processor, "data_parser", None), "audio_resampler", None)
    target = getattr(resampler, "target_sr", None)
    return None if target is None else int(target)


def _conversation(messages: Sequence[Message], rate: int | None = None) -> list[dict[str, Any]]:
    """The chat as vLLM reads it, its files decoded."""
    files = _decoded(messages, rate)
    return [{**_beside(message), "role": message.role, "content": _content(message, files)} for message in messages]


def _content(message: Message, files: Iterator[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else next(files) for part in message.content
    ]


def _decoded(messages: Sequence[Message], wanted: int | None) -> Iterator[dict[str, Any]]:
    left = sound.MAX_SAMPLES  # a file may hold more than it claims
    for where, part in media_parts(messages):
        if isinstance(part, ImagePart):
            yield {"type": "image_pil", "image_pil": media.decode_image(part, where)}
        elif isinstance(part, AudioPart):
            samples, rate = media.decode_audio(part, where, left)
            left -= samples.size
            data = _base64(sound.encoded(samples.T, rate, at=wanted))
            yield {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        else:
            yield {"type": "video_url", "video_url": {"url": f"data:{part.media_type};base64,{_base64(part.data)}"}}


def _beside(message: Message) -> dict[str, Any]:
    """Fields of a turn beside role and content: a name, calls, the call that it answers."""
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(message, content=""))
    return {name: value for name, value in fields.items() if name not in ("role", "content")}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

"""Going on with a text that another replica began.

The tokens that arrived are fed as if they belonged to the prompt, and the text is made here from all tokens, by vLLM's own
incremental detokenizer, primed as it was then: half a character, a leading space or a stop string that lies across the seam
come out as in one piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from omnibus.workers.engines.protocol import TextDelta

SLICE = 4096
"""Tokens of one delta, at most, when received text is sent again."""


class Continuation:
    """One text from its first token on, of which `heard` are there already."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Mapping[str, Any],
        params: SamplingParams,
        received: Sequence[int],
        ends: frozenset[int],
    ) -> None:
        """`params` are those of the whole text; `ends` are the tokens that end it.

        What was received behind its end belongs to the next one.
        """
        self._prompt, self._params = prompt, params
        self._ends = ends
        self._received = list(_of_one_text(received, ends, params.max_tokens or 0))
        self._text = IncrementalDetokenizer.from_new_request(tokenizer, _as_begun(prompt, params))
        self.finish_reason: str | None = None
        """Set by `replay` when nothing is missing of the text; its maker died before it could say so."""

    @property
    def prompt(self) -> dict[str, Any]:
        """The prompt that vLLM is fed."""
        return {**self._prompt, "prompt_token_ids": [*self._prompt["prompt_token_ids"], *self._received]}

    def rest(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling parameters of what is left."""
        done = len(self._received)
        fewest = max(sampling.get("min_tokens", 0) - done, 0)
        return {**sampling, "max_tokens": sampling["max_tokens"] - done, "min_tokens": fewest, "stop": None}

    def replay(self, most: int = SLICE) -> Iterator[TextDelta]:
        """Send the received tokens again, at most so many at a time, with their text as it was."""
        for start in range(0, len(self._received), most):
            tokens = self._received[start : start + most]
            is_last = start + most >= len(self._received)
            reason = self._reason_after(tokens[-1]) if is_last else None
            text, tokens, self.finish_reason, _ = self._read(tokens, reason)
            yield TextDelta(text=text, token_ids=tuple(tokens))
            if self.finish_reason is not None:
                return

    def read(self, part: Any) -> Any:
        """A CompletionOutput of vLLM's, which made no text, with its text and what a stop string makes of it."""
        text, tokens, reason, stop = self._read(list(part.token_ids), part.finish_reason)
        return dataclasses.replace(
            part, text=text, token_ids=tokens, finish_reason=reason, stop_reason=stop or part.stop_reason
        )

    def _read(self, tokens: list[int], reason: str | None) -> tuple[str, list[int], str | None, str | None]:
        """Text, tokens and finish reason, and the stop string that was met."""
        before = self._text.num_output_tokens()
        stop = self._text.update(tokens, reason == "stop")
        reason = "stop" if stop else reason
        text = self._text.get_next_output_text(reason is not None, delta=True)
        return text, self._text.output_token_ids[before:], reason, stop

    def _reason_after(self, last: int) -> str | None:
        """As vLLM's scheduler decides after each token."""
        if last in self._ends:
            return "stop"
        return "length" if len(self._received) >= (self._params.max_tokens or 0) else None


def _of_one_text(received: Sequence[int], ends: frozenset[int], most: int) -> Sequence[int]:
    ended = (number for number, token in enumerate(received, 1) if token in ends or number == most)
    return received[: next(ended, len(received))]


def ends_of(params: SamplingParams, generation_config: dict[str, Any], eos: int | None) -> frozenset[int]:
    """The tokens that end a text, as vLLM gathers them from the request, the model and the tokenizer."""
    params = params.clone()
    params.update_from_generation_config(generation_config, eos)
    first = () if params.eos_token_id is None else (params.eos_token_id,)
    return frozenset((*first, *(params.stop_token_ids or ())))


def _as_begun(prompt: Mapping[str, Any], params: SamplingParams) -> EngineCoreRequest:
    """The request that the detokenizer of the first attempt was made for."""
    return EngineCoreRequest(
        request_id="", prompt_token_ids=prompt["prompt_token_ids"], mm_features=None, sampling_params=params,
        pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip

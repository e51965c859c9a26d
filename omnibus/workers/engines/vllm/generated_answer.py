"""From what vLLM generates to an answer: the text, and the fields beside it, of each choice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm.entrypoints.serve.utils.tool_calls_utils import maybe_filter_parallel_tool_calls
from vllm.renderers.chat_utils import get_tool_call_id_type

from omnibus.wire.fields import FINISH_REASON, LOGPROBS, PROMPT_LOGPROBS, REASONING, TEXT, call_field, of_choice
from omnibus.workers.engines.protocol import TextDelta
from omnibus.workers.engines.vllm.chat_format import Chat

_LEAST = -9999.0
"""The logarithm of no probability: JSON has no infinity."""


class _Choice:
    """One choice, read by a parser of its own."""

    def __init__(self, rid: str, index: int, chat: Chat | None) -> None:
        self._rid, self._index, self._chat = rid, index, chat
        self._parser = chat.new_parser() if chat is not None else None
        self._named: set[int] = set()
        """Calls whose name went out."""
        self._thinks = self._parser is not None and self._parser.reasoning_parser is not None
        self._token_ids: list[int] = []
        self._reasoning: list[str] = []
        """Both where there may be reasoning, for the number of its tokens."""
        self.reason: str | None = None
        self.tokens = 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of its reasoning: as vLLM counts them, else, as where the prompt begins it, those of its text."""
        if not self._thinks or self._parser is None or self._chat is None:
            return 0
        counted = self._parser.count_reasoning_tokens(self._token_ids)
        text = "".join(self._reasoning)
        return counted or len(self._chat.tokenizer.encode(text, add_special_tokens=False))

    def read(
        self, text: str, token_ids: Sequence[int], reason: str | None, prompt: Sequence[int]
    ) -> tuple[str, dict[str, str]]:
        """The next piece of the content, and of fields, by their names in the choice."""
        self.tokens += len(token_ids)
        fields: dict[str, str] = {}
        if self._parser is not None and self._chat is not None and (text or token_ids or reason):
            delta = self._parser.parse_delta(
                text, list(token_ids), self._chat.request, list(prompt), finished=reason is not None
            )
            text = ""
            if self._thinks:
                self._token_ids.extend(token_ids)
                self._reasoning.append(delta.reasoning or "" if delta is not None else "")
            if delta is not None:
                delta = maybe_filter_parallel_tool_calls(delta, self._chat.request)
                text = delta.content or ""
                fields = dict(self._fields(delta))
        if reason is not None:
            self.reason = self._reason(reason)
        return text, fields

    def _fields(self, delta: Any) -> Iterator[tuple[str, str]]:
        if delta.reasoning:
            yield REASONING, delta.reasoning
        pieces: dict[str, str] = {}
        for call in delta.tool_calls:
            name, arguments = (call.function.name, call.function.arguments) if call.function else (None, None)
            if name and call.index not in self._named:
                self._named.add(call.index)
                pieces[call_field(call.index, "id")] = self._call_id(call)
                pieces[call_field(call.index, "name")] = name
            if arguments:
                where = call_field(call.index, "arguments")
                pieces[where] = pieces.get(where, "") + arguments
        yield from pieces.items()

    def _call_id(self, call: Any) -> str:
        """The parser's own where it counts them; else one that a later attempt at the request gives the call, too."""
        assert self._chat is not None
        if call.id and get_tool_call_id_type(self._chat.model) != "random":
            return str(call.id)
        return f"call_{_digest(f'{self._rid}.{self._index}.{call.index}')[:24]}"

    def _reason(self, reason: str) -> str:
        """As OpenAI's API has it: a call that the caller has named ends with stop."""
        calls = self._named and self._chat is not None and not self._chat.names_its_tool
        return "tool_calls" if calls and reason == "stop" else reason


class Answer:
    """The answer to one job, as far as it is made."""

    def __init__(
        self, rid: str, sampling: Mapping[str, Any], prompt: Sequence[int], chat: Chat | None, tokenizer: Any
    ) -> None:
        """`prompt`: its tokens, as far as there are any."""
        self._prompt, self._tokenizer = prompt, tokenizer
        self._most: int | None = sampling.get("logprobs")
        self._echoes = bool(sampling.get("echo"))
        self._choices = [_Choice(rid, index, chat) for index in range(sampling.get("n") or 1)]
        self._is_plain = chat is None and self._most is None and len(self._choices) == 1

    @property
    def others(self) -> int:
        """Generated tokens of the choices behind the first."""
        return sum(choice.tokens for choice in self._choices[1:])

    @property
    def reasoning_tokens(self) -> int:
        """Generated tokens that are reasoning, of all choices."""
        return sum(choice.reasoning_tokens for choice in self._choices)

    @property
    def reason(self) -> str | None:
        """Why the first choice ended; None while any is made."""
        reasons = [choice.reason for choice in self._choices]
        return None if None in reasons else reasons[0]

    def echo(self, prompt: str) -> TextDelta:
        """The prompt's text, which every choice begins with."""
        return TextDelta(text=prompt, fields={of_choice(i, TEXT): prompt for i in range(1, len(self._choices))})

    def read(self, parts: Sequence[Any], prompt_logprobs: Sequence[Any] | None = None) -> TextDelta:
        """The next piece of the answer: `parts` are vLLM's CompletionOutputs."""
        if self._is_plain and not prompt_logprobs:
            (part,) = parts
            return self._read_plain(part)
        text, token_ids, fields = "", list[int](), dict[str, str]()
        if prompt_logprobs and self._echoes and self._most is not None:
            lines = "".join(self._lines(self._prompt, prompt_logprobs))
            fields |= {of_choice(index, LOGPROBS): lines for index in range(len(self._choices))}
        elif prompt_logprobs:
            fields[PROMPT_LOGPROBS] = self._of_prompt(prompt_logprobs)
        for part in parts:
            choice = self._choices[part.index]
            if choice.reason is not None:
                continue
            content, own = choice.read(part.text, part.token_ids, part.finish_reason, self._prompt)
            if self._most is not None and part.logprobs:
                where = of_choice(part.index, LOGPROBS)
                own[LOGPROBS] = fields.get(where, "") + "".join(self._lines(part.token_ids, part.logprobs))
            if part.index == 0:
                text, token_ids = content, list(part.token_ids)
            else:
                own |= {TEXT: content} if content else {}
                own |= {FINISH_REASON: choice.reason} if choice.reason is not None else {}
            fields |= {of_choice(part.index, name): value for name, value in own.items()}
        return TextDelta(text=text, token_ids=tuple(token_ids), fields=fields)

    def _read_plain(self, part: Any) -> TextDelta:
        (choice,) = self._choices
        choice.reason = part.finish_reason
        return TextDelta(text=part.text, token_ids=tuple(part.token_ids))

    def repeat(self, delta: TextDelta, reason: str | None) -> TextDelta:
        """A piece of the first choice that an earlier attempt made, read again."""
        text, fields = self._choices[0].read(delta.text, delta.token_ids, reason, self._prompt)
        return TextDelta(text=text, token_ids=delta.token_ids, fields=fields)

    def _lines(self, token_ids: Sequence[int], logprobs: Sequence[Mapping[int, Any] | None]) -> Iterator[str]:
        """A line of JSON for each token."""
        for token, found in zip(token_ids, logprobs, strict=False):
            known = found or {}
            entry = self._entry(token, known.get(token))
            ranked = sorted((one for one in known.items() if one[1].rank), key=lambda one: one[1].rank)
            top = [self._entry(other, one) for other, one in ranked if one.rank <= (self._most or 0)]
            yield json.dumps({**entry, "top_logprobs": top}) + "\n"

    def _of_prompt(self, logprobs: Sequence[Mapping[int, Any] | None]) -> str:
        def entry(token: int, one: Any) -> dict[str, Any]:
            logprob = one.logprob if math.isfinite(one.logprob) else _LEAST
            return {"logprob": logprob, "rank": one.rank, "decoded_token": self._word(token, one)}

        found = [
            None if at is None else {str(token): entry(token, one) for token, one in at.items()} for at in logprobs
        ]
        return json.dumps(found)

    def _word(self, token: int, found: Any) -> str:
        """The text of a token, which vLLM leaves out of a prompt that it was fed in parts."""
        word = found.decoded_token if found is not None else None
        return str(self._tokenizer.decode([token])) if word is None else word

    def _entry(self, token: int, found: Any) -> dict[str, Any]:
        word = self._word(token, found)
        logprob = None if found is None else max(found.logprob, _LEAST)
        return {"token": word, "logprob": logprob, "bytes": list(word.encode("utf-8", "replace"))}


def seed_of(rid: str) -> int:
    """The seed of an answer that every attempt at a request makes from its beginning, where the caller gave none."""
    return int(_digest(rid)[:8], 16) >> 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

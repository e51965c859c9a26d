"""The text behind one prompt: vLLM's sampling parameters for it, its pieces as they come, and why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from omnibus.workers.engines.protocol import TextDelta
from omnibus.workers.engines.vllm.chat_format import structured
from omnibus.workers.engines.vllm.continuation import Continuation, ends_of
from omnibus.workers.engines.vllm.generated_answer import Answer, seed_of
from omnibus.workers.engines.vllm.job_run import Run
from omnibus.workers.engines.vllm.prompt_feed import PromptFeed
from omnibus.workers.engines.vllm.prompts import PromptRenderer
from omnibus.workers.engines.vllm.sampling_params import continues, fit_context, is_made_at_once


class TextGeneration:
    """Generates texts with an AsyncLLM."""

    def __init__(self, llm: AsyncLLM, prompts: PromptRenderer, *, has_text: bool, has_states: bool) -> None:
        """`has_text`: tokens are made texts; `has_states`: hidden states are an output."""
        self._llm, self._prompts = llm, prompts
        self._has_text, self._has_states = has_text, has_states

    async def text(
        self, run: Run, feed: PromptFeed, prompt: Any, sampling: Mapping[str, Any]
    ) -> AsyncGenerator[TextDelta, None]:
        """The text behind one prompt; the run knows afterwards why it ended."""
        sampling = fit_context(
            _formed(run, sampling), self._prompts.length(prompt), self._llm.model_config.max_model_len
        )
        run.begin()
        begun = self._begun(run, prompt, sampling, is_fed=feed.streams)
        ids = prompt.get("prompt_token_ids", ())
        answer = Answer(run.rid, sampling, ids, run.chat, self._llm.renderer.tokenizer)
        run.answers.append(answer)
        echoed = await self._echoed(prompt, sampling)
        for delta in self._opening(run, answer, echoed, begun):
            yield run.keep(delta)
            await asyncio.sleep(0)  # a parser may take long for each, and leases are kept on this loop
        if answer.reason is not None:
            run.reason = answer.reason
            return
        if begun is not None:
            prompt, sampling = begun.prompt, begun.rest(sampling)
        params = self.params(run, sampling, detokenize=begun is None)
        if run.aborted:
            return
        async with aclosing(feed.outputs(prompt, params)) as outputs:
            async for output in outputs:
                made = output.outputs if begun is None else [begun.read(output.outputs[0])]
                delta = run.keep(answer.read(made, output.prompt_logprobs))
                run.others = answer.others
                if not run.segments:
                    run.cached_tokens = output.num_cached_tokens or 0
                if delta.text or delta.token_ids or delta.fields:
                    yield delta
                if answer.reason is not None:
                    run.reason, run.handed_over = answer.reason, output.kv_transfer_params
                if output.outputs[-1].finish_reason is None and (answer.reason is not None or run.aborted):
                    # vLLM would go on behind a stop string; and an abort may have come before the request.
                    await feed.close()
                    return

    def params(self, run: Run, sampling: Mapping[str, Any], *, detokenize: bool = True) -> SamplingParams:
        extra = dict(sampling.get("extra_args") or {})
        if self._has_states or run.transfer:
            extra["kv_transfer_params"] = {"include_output_tokens": True, **run.transfer}
        ours = {
            "extra_args": extra or None,
            "output_kind": RequestOutputKind.DELTA,
            "detokenize": detokenize and self._has_text,
        }
        return SamplingParams(**{name: value for name, value in sampling.items() if name != "echo"} | ours)

    async def _echoed(self, prompt: Any, sampling: Mapping[str, Any]) -> str | None:
        return await self._prompts.text(prompt) if sampling.get("echo") else None

    def _opening(self, run: Run, answer: Answer, echoed: str | None, begun: Continuation | None) -> Iterator[TextDelta]:
        """Give what is there before anything is generated: the prompt where it is echoed, and what an earlier attempt made."""
        if echoed is not None:
            yield answer.echo(echoed)
        if begun is not None:
            # One by one, as vLLM makes them: some parsers overlook a mark among other tokens.
            for delta in begun.replay(*(() if run.chat is None else (1,))):
                yield answer.repeat(delta, begun.finish_reason)

    def _begun(self, run: Run, prompt: Any, sampling: Mapping[str, Any], *, is_fed: bool) -> Continuation | None:
        """A text that is made of tokens here: one that the client has the beginning of, or behind a prompt that is fed."""
        if not self._has_text or "prompt_token_ids" not in prompt:
            return None
        vocabulary = self._llm.model_config.get_vocab_size()
        fits = run.is_session or len(run.received) <= sampling["max_tokens"]
        goes_on = continues(sampling) and fits and all(0 <= token < vocabulary for token in run.received)
        received = run.received if goes_on else ()
        if not (is_fed or received):
            return None
        params = self.params(run, sampling)
        return Continuation(self._llm.renderer.tokenizer, prompt, params, received, self.ends(params))

    def ends(self, params: SamplingParams) -> frozenset[int]:
        fields = self._llm.input_processor.generation_config_fields
        return ends_of(params, fields, self._llm.renderer.get_eos_token_id())


def _formed(run: Run, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters with the form that the text must have, and a seed for what every attempt makes anew."""
    formed = {**sampling, "structured_outputs": structured(sampling.get("structured_outputs"))}
    if run.chat is not None:
        formed = run.chat.sampling(formed)
    if formed.get("echo") and formed.get("prompt_logprobs") is None:
        formed["prompt_logprobs"] = formed.get("logprobs")
    if is_made_at_once(formed) and formed.get("seed") is None:
        formed["seed"] = seed_of(run.rid)
    return formed

"""The part of the vLLM engine that touches vLLM: one job from prompt to outputs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from omnibus.errors import EngineDead, EngineError, EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.control import PromptTokens
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.failure import describe
from omnibus.wire.subjects import INPUT
from omnibus.workers.engines.protocol import EngineInput, EngineStats, Finished, Item, Job, SegmentEnd
from omnibus.workers.engines.vllm import hidden_states, kv_handover
from omnibus.workers.engines.vllm.adapters import Adapters
from omnibus.workers.engines.vllm.arguments import VllmArguments
from omnibus.workers.engines.vllm.chat_format import ChatFormat
from omnibus.workers.engines.vllm.job_run import Run, RunAborted, parts_of
from omnibus.workers.engines.vllm.pair_scoring import PairScoring
from omnibus.workers.engines.vllm.process_end import first_end
from omnibus.workers.engines.vllm.prompt_feed import PromptFeed
from omnibus.workers.engines.vllm.prompts import PromptRenderer
from omnibus.workers.engines.vllm.rpc_methods import call
from omnibus.workers.engines.vllm.sampling_params import (
    BESIDE_TOKENS,
    check_sampling,
    fit_context,
    is_made_at_once,
    rejected,
)
from omnibus.workers.engines.vllm.session_context import SessionContext, known_so_far
from omnibus.workers.engines.vllm.startup import LoadGauge, start_llm
from omnibus.workers.engines.vllm.text_generation import TextGeneration
from omnibus.workers.engines.vllm.transfer_folder import TransferFolder

GREEDY_TOKEN = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True}
"""Sampling of a prompt that is computed for what it leaves behind."""
OPEN_END = 8
"""Tokens at the end of a text that is not all there: they may be others when more of it is."""
STOP_TIMEOUT = 10.0
"""Seconds for EngineCore to end by itself; then vLLM kills it, which loses nothing: no state outlives it."""


class VllmCore:
    """A running AsyncLLM. Constructing it blocks until EngineCore serves."""

    def __init__(self, stage: StageSpec, arguments: VllmArguments) -> None:
        self._stage = stage
        self._declared = arguments.lora_modules
        self._load = LoadGauge()
        self._ending = asyncio.Event()
        self._folder = TransferFolder()
        self._kv_cache, self._kv_files = arguments.kv_cache, kv_handover.KvFiles(self._folder.path)
        self._role, self._kv = arguments.role, kv_handover.handover(arguments, self._kv_files)
        # What a prefill stage knows of hidden states goes to the other one with its KV.
        self._has_states = bool(arguments.hidden_states) and self._role != "prefill"
        self._keeps = self._has_states or bool(self._kv_cache)
        self._llm = start_llm(stage, self._engine_args(arguments), self._load)
        self._has_text, self._encodes = not arguments.skip_tokenizer, arguments.encodes
        self._generates = not self._encodes and self._role != "prefill"
        self._interleaves = arguments.interleaved
        self._chats = ChatFormat(arguments, self._llm.renderer, self._llm.model_config)
        self._prompts = PromptRenderer(self._llm.renderer, self._llm.model_config, self._chats.plain)
        self._adapters = Adapters(self._llm)
        self._pairs = PairScoring(self._llm, self._chats.plain.chat_template) if arguments.scores else None
        self._generation = TextGeneration(
            self._llm, self._prompts, has_text=self._has_text, has_states=self._has_states
        )
        self._runs: dict[str, Run] = {}
        self._numbers = itertools.count()

    @property
    def steps(self) -> int:
        """Outputs of the scheduler so far."""
        return self._load.steps

    @property
    def errored(self) -> bool:
        """Whether EngineCore is gone, or about to be."""
        return self._ending.is_set() or bool(self._llm.errored)

    async def wait_gone(self) -> None:
        """Return when EngineCore's process has ended, or has shown in a job that it is about to.

        Where vLLM runs it elsewhere (Ray), jobs and `errored` alone tell.
        """
        manager: Any = self._llm.engine_core.resources.engine_manager
        await first_end(manager.sentinels() if hasattr(manager, "sentinels") else (), self._ending)

    def _dead(self, how: str) -> EngineDead:
        self._ending.set()
        return EngineDead(f"stage {self._stage.name!r}: vLLM's EngineCore {how}")

    def stats(self) -> EngineStats:
        """Jobs inside the engine; those that its scheduler had not taken up at its last step wait."""
        waiting = min(self._load.waiting, len(self._runs))
        return EngineStats(running=len(self._runs) - waiting, waiting=waiting)

    async def warm(self) -> None:
        """Ask EngineCore what vLLM would ask at the first request, and load adapters; raises StageStartError.

        Once that is cached, nothing is awaited between a run's check for an abort and its registration in vLLM.
        """
        await self._llm.get_supported_tasks()
        if self._pairs is not None:
            await self._pairs.check()
        await self._adapters.set_adapters(self._declared, {})

    async def run(self, job: Job) -> AsyncGenerator[Item, None]:
        """Stream the job's items; vLLM's errors become ours."""
        with self._registered(job) as run:
            try:
                async with aclosing(self._method(job)(job, run)) as items:
                    async for item in items:
                        run.ended = isinstance(item, Finished)
                        yield item
            except RunAborted:
                yield self._finished(run, "abort") if self._generates else Finished(outputs={}, finish_reason="abort")
            except VLLMClientError as error:
                run.ended = True
                raise rejected(
                    error, "structured_outputs" if job.sampling.get("structured_outputs") else None
                ) from error
            except EngineDeadError as error:
                raise self._dead("is gone") from error
            except (EngineGenerateError, GracefulHTTPError) as error:
                raise EngineError(f"stage {self._stage.name!r}: {describe(error.__cause__ or error)}") from error
            finally:
                if not run.ended and not self.errored:
                    with suppress(EngineDeadError):
                        await self._llm.is_paused()  # EngineCore answers in order: it has taken the abort by then
                for one in (run.id, _again(run)):
                    self._kv_files.discard(one)

    async def abort(self, rid: str) -> None:
        """Stop the runs of a request; unknown ids are ignored."""
        for run in [run for run in self._runs.values() if run.rid == rid]:
            await self._abort(run)

    async def _abort(self, run: Run) -> None:
        run.stopped.set()
        if not self.errored:
            await self._llm.abort(run.id)

    async def tokens(self, job: Job, *, special: bool | None, strings: bool) -> PromptTokens:
        """The tokens of a job's prompt, which may be longer than the context; vLLM's errors become ours."""
        chat = self._chats.of(job, reads=False)
        return await self._prompts.tokens(job, None if chat is None else chat.params, special=special, strings=strings)

    @contextmanager
    def _registered(self, job: Job) -> Iterator[Run]:
        # vLLM refuses an id twice, and one request may be delivered twice: each run has an id of its own.
        run = Run(f"{job.rid}-{next(self._numbers)}", job.rid, job.received)
        self._runs[run.id] = run
        try:
            yield run
        finally:
            del self._runs[run.id]

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await call(self._llm, self._adapters, method, args, kwargs)

    async def quiesce(self) -> None:
        """Abort what runs, and end the task that waits for EngineCore's outputs, which would report its end as a failure."""
        for run in list(self._runs.values()):
            await self._abort(run)
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()

    def stop(self) -> None:
        """End EngineCore and remove its files; blocks."""
        self._llm.shutdown(timeout=STOP_TIMEOUT)
        self._folder.close()

    def _engine_args(self, arguments: VllmArguments) -> dict[str, Any]:
        folder, layers = self._folder.path, arguments.hidden_states
        return {
            **(hidden_states.engine_args(layers) if layers else {}),
            **arguments.engine,
            **kv_handover.engine_args(
                arguments, folder, *([hidden_states.connector(folder)] if self._has_states else [])
            ),
        }

    def _method(self, job: Job) -> Callable[[Job, Run], AsyncGenerator[Item, None]]:
        if not self._generates:
            return self._encode if self._encodes else self._prefill
        is_session = job.parts is not None and (self._interleaves or INPUT in job.stage_input.flows)
        return self._answer if is_session else self._stream

    async def _stream(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        """The text behind the prompt."""
        sampling = check_sampling(job.sampling, extracts=self._has_states)
        async with await self._feed(job, run) as feed:
            prompt = await self._prompted(job, run, feed)
            async with aclosing(self._generation.text(run, feed, prompt, sampling)) as deltas:
                is_first = True
                async for delta in deltas:
                    yield replace(delta, prompt_tokens=run.prompt_tokens) if is_first else delta
                    is_first = False
            yield await self._last(run, prompt)

    async def _answer(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        """The text behind each part of the input, such as a segment of an open one, and all that came before it."""
        sampling = check_sampling(job.sampling, extracts=self._has_states)
        if is_made_at_once(sampling):
            name = next(name for name in ("n", *BESIDE_TOKENS) if sampling.get(name))
            raise EngineRejected(f"{name} has no effect on an input that is answered part by part", param=name)
        context, run.is_session = SessionContext(partial(self._prompts.of, job), self._prompts.bos), True
        prompt: Any = None
        async with await self._feed(job, run) as feed, aclosing(parts_of(job, run)) as parts:
            async for part in parts:
                prompt, new = await context.prompt(part)
                run.prompt_tokens += new
                async with aclosing(self._generation.text(run, feed, prompt, sampling)) as deltas:
                    is_opening = True
                    async for delta in deltas:
                        yield replace(delta, is_opening=True) if is_opening else delta
                        is_opening = False
                self._check_end(run)
                text, token_ids = "".join(run.texts[run.text_begun :]), run.token_ids[run.begun :]
                context.answered(text, token_ids, self._generation.ends(self._generation.params(run, sampling)))
                run.received = run.received[len(token_ids) :]
                await self._drop_states(run)
                if INPUT in job.stage_input.flows:
                    run.segments.append(sum(map(len, run.texts)))
                    yield SegmentEnd()
            if prompt is None:
                raise EngineRejected("the input has no part")
            yield await self._last(run, prompt)

    async def _feed(self, job: Job, run: Run) -> PromptFeed:
        lora, trace = self._adapters.of(job), await self._trace(job)

        def generate(prompt: Any, params: SamplingParams) -> AsyncGenerator[Any, None]:
            made: AsyncGenerator[Any, None] = self._llm.generate(
                prompt, params, run.id, lora_request=lora, trace_headers=trace, priority=job.priority,
                **({} if run.chat is None else run.chat.engine_arguments(prompt.get("prompt_token_ids", ()))),
            )  # fmt: skip
            return made

        # vLLM's connectors hand over what a request leaves when it ends, which a streamed one does by an abort.
        return PromptFeed(generate, streams=job.parts is not None and not self._keeps and self._role is None)

    async def _prompted(self, job: Job, run: Run, feed: PromptFeed | None = None) -> Any:
        if job.parts is not None:
            job = replace(job, engine_input=await self._collected(job, run, feed), parts=None)
        if self._role == "decode":
            job = replace(job, engine_input=kv_handover.with_files(job))
        run.chat = self._chats.of(job, decodes=self._role == "decode", reads=self._generates)
        prompt = await self._prompts.of(job, chat=None if run.chat is None else run.chat.params)
        run.prompt_tokens = self._prompts.length(prompt)
        if self._role == "decode":
            run.transfer = await self._kv.loading(run.id, job.engine_input.values, prompt.get("prompt_token_ids"))
        run.transfer = {**run.transfer, **self._saving(run.id)}
        return prompt

    async def _collected(self, job: Job, run: Run, feed: PromptFeed | None) -> EngineInput:
        """The prompt that all parts make together; the KV of those that are known is computed while the others are made."""
        async for given, is_whole in known_so_far(parts_of(job, run)):
            if is_whole:
                return given
            if feed is None or not feed.streams:
                continue
            prompt = await self._prompts.of(replace(job, engine_input=given))
            fit_context({}, self._prompts.length(prompt), self._llm.model_config.max_model_len)
            known = {**prompt, "prompt_token_ids": prompt["prompt_token_ids"][:-OPEN_END]}
            if len(known["prompt_token_ids"]) <= len(feed.held):
                continue
            async for output in feed.outputs(known, self._generation.params(run, GREEDY_TOKEN, detokenize=False)):
                run.reason = output.outputs[0].finish_reason or ""
            self._check_end(run)
        raise RunAborted

    def _saving(self, run: str) -> Mapping[str, Any]:
        return self._kv_files.saving(run) if self._kv_cache else {}

    async def _encode(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        """The states of the prompt alone, or the score of a pair, of a stage that generates nothing."""
        _check_no_sampling(job, "encoding")
        lora, params = self._adapters.of(job), PoolingParams(task="token_embed", use_activation=False)
        if self._pairs is None:
            prompt = await self._prompted(job, run)
        else:
            prompt, params = await self._pairs.prompt(job.engine_input.messages)
            run.prompt_tokens = self._prompts.length(prompt)
        fit_context({}, run.prompt_tokens - 1, self._llm.model_config.max_model_len)  # nothing is generated
        trace = await self._trace(job)
        if run.aborted:
            raise RunAborted
        outputs = self._llm.encode(
            prompt, params, run.id, lora_request=lora, trace_headers=trace, priority=job.priority
        )
        async with aclosing(outputs):
            async for output in outputs:
                if run.aborted:
                    raise RunAborted
                if output.finished:
                    made, usage = output.outputs.data.float().cpu(), TokenUsage(prompt_tokens=run.prompt_tokens)
                    is_score = self._pairs is not None
                    outputs = {"score": made.item()} if is_score else {"last_hidden_state": made.numpy()}
                    yield Finished(outputs=outputs, usage=usage)

    async def _prefill(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        """The KV of the prompt, for a stage that decodes."""
        _check_no_sampling(job, "a prefill stage")
        lora, prompt = self._adapters.of(job), await self._prompted(job, run)
        fit_context({}, run.prompt_tokens, self._llm.model_config.max_model_len)
        if "prompt_token_ids" not in prompt:
            raise EngineRejected("a prefill stage takes messages, texts and token ids", param="prompt")
        token_ids = list(prompt["prompt_token_ids"])
        run.transfer = self._kv.saving(run.id)
        trace, params = await self._trace(job), self._generation.params(run, GREEDY_TOKEN, detokenize=False)
        outputs = self._llm.generate(
            prompt, params, run.id, lora_request=lora, trace_headers=trace, priority=job.priority
        )
        async with aclosing(outputs):
            async for output in outputs:
                run.cached_tokens = output.num_cached_tokens or 0
                run.reason = output.outputs[0].finish_reason
        self._check_end(run)
        made = await self._kv.outputs(token_ids, output.kv_transfer_params)
        yield Finished(
            outputs=made, finish_reason=run.reason, usage=TokenUsage(run.prompt_tokens, 0, run.cached_tokens)
        )

    async def _trace(self, job: Job) -> Mapping[str, str] | None:
        return job.trace if job.trace and await self._llm.is_tracing_enabled() else None

    async def _states_of(self, prompt: Any, run: Run) -> Mapping[str, Any] | None:
        """Where the states and the KV of a text are, by one more prefill: of the prompt and the tokens behind it but the last."""
        if "prompt_token_ids" not in prompt:
            return None
        fed = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *run.token_ids[run.begun : -1]]}
        again = Run(_again(run), run.rid, transfer={**run.transfer, **self._saving(_again(run))})
        handed_over: Mapping[str, Any] | None = None
        async with aclosing(self._llm.generate(fed, self._generation.params(again, GREEDY_TOKEN), again.id)) as outputs:
            async for output in outputs:
                handed_over = output.kv_transfer_params
        return handed_over

    def _check_end(self, run: Run) -> None:
        if run.reason == "error":
            raise EngineError(f"stage {self._stage.name!r}: vLLM failed on the request")
        if run.reason == "abort":
            if run.aborted:
                raise RunAborted
            raise self._dead("ends")  # EngineCore is ending, and ends its requests: half a text

    async def _drop_states(self, run: Run) -> None:
        """Remove those of a segment's answer: those at the end are of the whole session."""
        if self._has_states and run.handed_over:
            await hidden_states.taken(run.handed_over["hidden_states_path"])
        run.handed_over = None

    async def _last(self, run: Run, prompt: Any) -> Finished:
        self._check_end(run)
        if not self._keeps:
            return self._finished(run, run.reason)
        # Nothing was kept of what EngineCore did not see the end of: a stop string, a replayed text, the end of a session.
        handed_over = run.handed_over or await self._states_of(prompt, run)
        if not handed_over:
            raise EngineError(f"stage {self._stage.name!r}: vLLM handed no hidden states or KV over")
        # vLLM may have gone on, past a stop string that we found.
        fed, kept = self._prompts.length(prompt) + len(run.token_ids) - run.begun - 1, dict[str, Any]()
        if self._has_states:
            kept["hidden_states"] = (await hidden_states.taken(handed_over["hidden_states_path"]))[:fed]
            kept["prompt_token_ids"] = list(prompt["prompt_token_ids"])
        if self._kv_cache:
            kept["kv_cache"] = (await self._kv_files.arrays(handed_over, self._kv_cache))[:, :, :fed]
        return self._finished(run, run.reason, **kept)

    def _finished(self, run: Run, reason: str, **more: Any) -> Finished:
        text = {"text": "".join(run.texts)} if self._has_text else {}
        usage = run.usage
        fields = {name: "".join(pieces) for name, pieces in run.fields.items()}
        outputs, segments = {**text, "token_ids": run.token_ids, **more}, tuple(run.segments)
        return Finished(outputs=outputs, finish_reason=reason, usage=usage, segments=segments, fields=fields)


def _check_no_sampling(job: Job, what: str) -> None:
    if job.sampling:
        name = next(iter(job.sampling))
        raise EngineRejected(f"unknown sampling parameter {name!r}: {what} takes none", param=name)


def _again(run: Run) -> str:
    """The id of the prefill that is made for what a run leaves behind; its files are others."""
    return f"{run.id}-again"

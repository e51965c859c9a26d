"""The part of the vLLM engine that touches vLLM: one job from prompt to outputs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from vllm import PoolingParams, SamplingParams
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from omnibus.errors import EngineDead, EngineError, EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.failure import describe
from omnibus.workers.engines.checkpoints import resolve_model
from omnibus.workers.engines.protocol import EngineStats, Finished, Item, Job, TextDelta
from omnibus.workers.engines.vllm import hidden_states, kv_handover
from omnibus.workers.engines.vllm.arguments import VllmArguments
from omnibus.workers.engines.vllm.continuation import Continuation, ends_of
from omnibus.workers.engines.vllm.process_end import first_end
from omnibus.workers.engines.vllm.prompts import PromptRenderer
from omnibus.workers.engines.vllm.rpc_methods import call
from omnibus.workers.engines.vllm.sampling_params import check_sampling, continues, fit_context, rejected
from omnibus.workers.engines.vllm.startup import LoadGauge, start_llm
from omnibus.workers.engines.vllm.transfer_folder import TransferFolder

GREEDY_TOKEN = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True}
"""Sampling of a prompt that is computed for what it leaves behind."""
STOP_TIMEOUT = 10.0
"""Seconds for EngineCore to end by itself; then vLLM kills it, which loses nothing: no state outlives it."""


@dataclass(slots=True)
class Run:
    """One job inside the engine, and what it has made so far."""

    id: str
    rid: str
    aborted: bool = False
    ended: bool = False
    """Whether EngineCore has nothing of it any more."""
    prompt_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """For KV connectors: its `kv_transfer_params`."""
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed here."""

    def take(self, text: str, token_ids: Sequence[int]) -> TextDelta:
        """Note what was made."""
        self.texts.append(text)
        self.token_ids.extend(token_ids)
        return TextDelta(text=text, token_ids=tuple(token_ids))


class VllmCore:
    """A running AsyncLLM. Constructing it blocks until EngineCore serves."""

    def __init__(self, stage: StageSpec, arguments: VllmArguments) -> None:
        self._stage = stage
        self._loras = arguments.lora_modules
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
        self._prompts = PromptRenderer(self._llm.renderer, self._llm.model_config, arguments.chat_template)
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
        """Ask EngineCore what vLLM would ask at the first request.

        Once that is cached, nothing is awaited between a run's check for an abort and its registration in vLLM.
        """
        await self._llm.get_supported_tasks()

    async def run(self, job: Job) -> AsyncGenerator[Item, None]:
        """Stream the job's items; vLLM's errors become ours."""
        with self._registered(job.rid) as run:
            try:
                async with aclosing(self._method()(job, run)) as items:
                    async for item in items:
                        run.ended = isinstance(item, Finished) and item.finish_reason != "abort"
                        yield item
            except VLLMClientError as error:
                run.ended = True
                raise rejected(error) from error
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
        run.aborted = True
        if not self.errored:
            await self._llm.abort(run.id)

    @contextmanager
    def _registered(self, rid: str) -> Iterator[Run]:
        # vLLM refuses an id twice, and one request may be delivered twice: each run has an id of its own.
        run = Run(f"{rid}-{next(self._numbers)}", rid)
        self._runs[run.id] = run
        try:
            yield run
        finally:
            del self._runs[run.id]

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await call(self._llm, method, args, kwargs)

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

    def _method(self) -> Callable[[Job, Run], AsyncGenerator[Item, None]]:
        if self._encodes:
            return self._encode
        return self._prefill if self._role == "prefill" else self._stream

    async def _stream(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        sampling = check_sampling(job.sampling, extracts=self._has_states)
        lora = self._lora(job)
        prompt = await self._prompted(job, run)
        sampling = fit_context(sampling, run.prompt_tokens, self._llm.model_config.max_model_len)
        begun, trace = self._begun(job, run, prompt, sampling), await self._trace(job)
        if begun is not None:
            for delta in begun.replay():
                yield run.take(delta.text, delta.token_ids)
            if begun.finish_reason is not None:
                yield await self._last(run, begun.finish_reason, await self._states_of(prompt, run))
                return
        if run.aborted:
            yield self._finished(run, "abort")
            return
        outputs = self._llm.generate(
            prompt if begun is None else begun.prompt,
            self._params(run, sampling) if begun is None else self._params(run, begun.rest(sampling), detokenize=False),
            run.id, lora_request=lora, trace_headers=trace, priority=job.priority,
        )  # fmt: skip
        async with aclosing(outputs):  # which aborts what a stop string has ended before vLLM
            async for output in outputs:
                part = output.outputs[0] if begun is None else begun.read(output.outputs[0])
                delta = run.take(part.text, part.token_ids)
                run.cached_tokens = output.num_cached_tokens or 0
                if delta.text or delta.token_ids:
                    yield delta
                if part.finish_reason is not None:
                    handed_over = output.kv_transfer_params
                    if not handed_over and isinstance(part.stop_reason, str):
                        handed_over = await self._states_of(prompt, run)
                    yield await self._last(run, part.finish_reason, handed_over)
                    if not output.finished:
                        return

    async def _prompted(self, job: Job, run: Run) -> Any:
        prompt = await self._prompts.of(job)
        run.prompt_tokens = self._prompts.length(prompt)
        if self._role == "decode":
            run.transfer = await self._kv.loading(run.id, job.engine_input.values, prompt.get("prompt_token_ids"))
        run.transfer = {**run.transfer, **self._saving(run.id)}
        return prompt

    def _saving(self, run: str) -> Mapping[str, Any]:
        return self._kv_files.saving(run) if self._kv_cache else {}

    def _begun(self, job: Job, run: Run, prompt: Any, sampling: Mapping[str, Any]) -> Continuation | None:
        """The text that the client has the beginning of, where it is to be continued."""
        vocabulary = self._llm.model_config.get_vocab_size()
        fits = len(job.received) <= sampling["max_tokens"] and all(0 <= token < vocabulary for token in job.received)
        if not (job.received and fits and self._has_text and "prompt_token_ids" in prompt and continues(sampling)):
            return None
        params, renderer = self._params(run, sampling), self._llm.renderer
        ends = ends_of(params, self._llm.input_processor.generation_config_fields, renderer.get_eos_token_id())
        return Continuation(renderer.tokenizer, prompt, params, job.received, ends)

    async def _encode(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        """The states of the prompt alone, of a stage that generates nothing."""
        _check_no_sampling(job, "encoding")
        lora, prompt = self._lora(job), await self._prompted(job, run)
        fit_context({}, run.prompt_tokens - 1, self._llm.model_config.max_model_len)  # nothing is generated
        params, trace = PoolingParams(task="token_embed", use_activation=False), await self._trace(job)
        if run.aborted:
            yield Finished(outputs={}, finish_reason="abort")
            return
        outputs = self._llm.encode(
            prompt, params, run.id, lora_request=lora, trace_headers=trace, priority=job.priority
        )
        async with aclosing(outputs):
            async for output in outputs:
                if run.aborted:
                    yield Finished(outputs={}, finish_reason="abort")
                elif output.finished:
                    states = output.outputs.data.float().cpu().numpy()
                    usage = TokenUsage(prompt_tokens=run.prompt_tokens)
                    yield Finished(outputs={"last_hidden_state": states}, usage=usage)

    async def _prefill(self, job: Job, run: Run) -> AsyncGenerator[Item, None]:
        """The KV of the prompt, for a stage that decodes."""
        _check_no_sampling(job, "a prefill stage")
        lora, prompt = self._lora(job), await self._prompted(job, run)
        fit_context({}, run.prompt_tokens, self._llm.model_config.max_model_len)
        if prompt["type"] != "token":
            raise EngineRejected(
                "a prefill stage takes texts and token ids: files cannot be handed over", param="messages"
            )
        token_ids = list(prompt["prompt_token_ids"])
        run.transfer = self._kv.saving(run.id)
        trace, params = await self._trace(job), self._params(run, GREEDY_TOKEN, detokenize=False)
        outputs = self._llm.generate(
            prompt, params, run.id, lora_request=lora, trace_headers=trace, priority=job.priority
        )
        async with aclosing(outputs):
            async for output in outputs:
                run.cached_tokens = output.num_cached_tokens or 0
                reason = output.outputs[0].finish_reason
        self._check_end(run, reason)
        made = {} if reason == "abort" else await self._kv.outputs(token_ids, output.kv_transfer_params)
        yield Finished(outputs=made, finish_reason=reason, usage=TokenUsage(run.prompt_tokens, 0, run.cached_tokens))

    async def _trace(self, job: Job) -> Mapping[str, str] | None:
        return job.trace if job.trace and await self._llm.is_tracing_enabled() else None

    async def _states_of(self, prompt: Any, run: Run) -> Mapping[str, Any] | None:
        """Where the states and the KV of a text are that a stop string ended: EngineCore saw an abort there, and kept none.

        One more prefill, over all that was fed: the prompt and the generated tokens but the last.
        """
        if not self._keeps or "prompt_token_ids" not in prompt:
            return None
        fed = {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *run.token_ids[:-1]]}
        again = Run(_again(run), run.rid, transfer={**run.transfer, **self._saving(_again(run))})
        handed_over: Mapping[str, Any] | None = None
        async with aclosing(self._llm.generate(fed, self._params(again, GREEDY_TOKEN), again.id)) as outputs:
            async for output in outputs:
                handed_over = output.kv_transfer_params
        return handed_over

    def _check_end(self, run: Run, reason: str) -> None:
        if reason == "error":
            raise EngineError(f"stage {self._stage.name!r}: vLLM failed on the request")
        if reason == "abort" and not run.aborted:  # EngineCore is ending, and ends its requests: half a text
            raise self._dead("ends")

    async def _last(self, run: Run, reason: str, handed_over: Mapping[str, Any] | None) -> Finished:
        self._check_end(run, reason)
        if not self._keeps or reason == "abort":
            return self._finished(run, reason)
        if not handed_over:
            raise EngineError(f"stage {self._stage.name!r}: vLLM handed no hidden states or KV over")
        fed, kept = (
            run.prompt_tokens + len(run.token_ids) - 1,
            {},
        )  # vLLM may have gone on, past a stop string that we found
        if self._has_states:
            kept["hidden_states"] = (await hidden_states.taken(handed_over["hidden_states_path"]))[:fed]
        if self._kv_cache:
            kept["kv_cache"] = (await self._kv_files.arrays(handed_over, self._kv_cache))[:, :, :fed]
        return self._finished(run, reason, **kept)

    def _finished(self, run: Run, reason: str, **more: Any) -> Finished:
        text = {"text": "".join(run.texts)} if self._has_text else {}
        usage = TokenUsage(run.prompt_tokens, len(run.token_ids), run.cached_tokens)
        return Finished(outputs={**text, "token_ids": run.token_ids, **more}, finish_reason=reason, usage=usage)

    def _params(self, run: Run, sampling: Mapping[str, Any], *, detokenize: bool = True) -> SamplingParams:
        extra = dict(sampling.get("extra_args") or {})
        if self._has_states or run.transfer:
            extra["kv_transfer_params"] = {"include_output_tokens": True, **run.transfer}
        ours = {
            "extra_args": extra or None,
            "output_kind": RequestOutputKind.DELTA,
            "detokenize": detokenize and self._has_text,
        }
        return SamplingParams(**{**sampling, **ours})

    def _lora(self, job: Job) -> LoRARequest | None:
        name = job.stage_input.request.lora
        # A request names one adapter; later stages without adapters have nothing to do with it, the first one must know it.
        if name is None or (not self._loras and job.stage_input.sources):
            return None
        if name not in self._loras:
            known = ", ".join(self._loras) or "none"
            raise EngineRejected(f"no LoRA adapter {name!r} here; there are: {known}", param="lora")
        return LoRARequest(name, list(self._loras).index(name) + 1, resolve_model(self._loras[name]))


def _check_no_sampling(job: Job, what: str) -> None:
    if job.sampling:
        name = next(iter(job.sampling))
        raise EngineRejected(f"unknown sampling parameter {name!r}: {what} takes none", param=name)


def _again(run: Run) -> str:
    """The id of the prefill that is made for what a run leaves behind; its files are others."""
    return f"{run.id}-again"

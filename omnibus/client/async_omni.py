"""AsyncOmni: ask a pipeline from async code."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self

from omnibus.client.engine import AsyncOmniEngine
from omnibus.client.output_queue import OutputQueue
from omnibus.client.request_arguments import NamedAdapter, Prompt, RequestArguments
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.client.rpc import CollectiveAnswer
from omnibus.client.session import Aborted
from omnibus.client.single_stage import Target
from omnibus.pipeline.spec import PipelineSpec


class AsyncOmni:
    """A pipeline that is served from here or runs on a cluster; arguments and errors are those of AsyncOmniEngine.

    Everything is up when the constructor returns; it blocks. `close` when done, or use it in an `async with`. May be used
    from any event loop.
    """

    def __init__(
        self, model: Target | None = None, init_timeout: float = 600, stage_init_timeout: float = 300, **kwargs: Any
    ) -> None:
        self.engine = AsyncOmniEngine(model, init_timeout, stage_init_timeout, **kwargs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def spec(self) -> PipelineSpec:
        return self.engine.spec

    async def generate(  # noqa: PLR0913 vLLM's signature, and ours
        self,
        prompt: Prompt,
        request_id: str | None = None,
        sampling_params_list: Sequence[Any] | None = None,
        *,
        output_modalities: Sequence[str] | None = None,
        stream: bool = False,
        prompt_text: str | None = None,
        arrival_time: float | None = None,
        lora_request: str | NamedAdapter | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> AsyncGenerator[OmniRequestOutput, None]:
        """Each output of a request as soon as it is ready; the last one is `finished`.

        With `stream`, pieces of text come before the whole text, as `delta`. `output_modalities` picks the outputs, None
        for all; `deadline` is in seconds; the rest is as for AsyncOmniEngine.add_request. Leaving early aborts the request.

        Raises as add_request does, and what the request failed of. An aborted request raises nothing: its last output has
        `finish_reason` "abort" and, of a text, what had been heard.
        """
        arguments = RequestArguments(
            sampling_params_list=sampling_params_list, modalities=output_modalities, lora_request=lora_request,
            trace_headers=trace_headers, priority=priority, deadline=deadline,
        )  # fmt: skip
        rid = request_id if request_id is not None else uuid.uuid4().hex
        box = self.engine.new_box()
        submitting = self.engine.session.submit(
            rid, prompt, arguments, box.put, prompt_text=prompt_text, arrival_time=arrival_time, deltas=stream
        )
        async with aclosing(self._outputs(rid, box, submitting)) as outputs:
            async for output in outputs:
                yield output

    async def abort(self, request_ids: str | Sequence[str]) -> list[Aborted]:
        """See AsyncOmniEngine.abort."""
        return await self.engine.abort_async(request_ids)

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None, stage_ids: Sequence[int] | None = None,
    ) -> CollectiveAnswer:  # fmt: skip
        """See AsyncOmniEngine.collective_rpc."""
        return await self.engine.collective_rpc_async(method, timeout, args, kwargs, stage_ids)

    # Orders to all replicas: see client.controls.Controls

    async def pause_generation(
        self, mode: str = "abort", *, clear_cache: bool = True, stage_ids: Sequence[int] | None = None
    ) -> CollectiveAnswer:
        """Replicas take no more tasks; returns when they have none in hand. No request is lost."""
        controls = self.engine.session.controls
        return await self.engine.run_async(
            controls.pause_generation(mode, clear_cache=clear_cache, stage_ids=stage_ids)
        )

    async def resume_generation(self, stage_ids: Sequence[int] | None = None) -> CollectiveAnswer:
        return await self.engine.run_async(self.engine.session.controls.resume_generation(stage_ids))

    async def is_paused(self, stage_ids: Sequence[int] | None = None) -> bool:
        return await self.engine.run_async(self.engine.session.controls.is_paused(stage_ids))

    async def sleep(
        self, level: int = 1, *, mode: str = "abort", stage_ids: Sequence[int] | None = None
    ) -> CollectiveAnswer:
        """Replicas give their device memory back, all or none; what cannot be undone is refused."""
        controls = self.engine.session.controls
        return await self.engine.run_async(controls.sleep(level, mode=mode, stage_ids=stage_ids))

    async def wake_up(self, stage_ids: Sequence[int] | None = None) -> CollectiveAnswer:
        return await self.engine.run_async(self.engine.session.controls.wake_up(stage_ids))

    async def is_sleeping(self, stage_ids: Sequence[int] | None = None) -> bool:
        return await self.engine.run_async(self.engine.session.controls.is_sleeping(stage_ids))

    async def start_profile(self, stage_ids: Sequence[int] | None = None) -> CollectiveAnswer:
        return await self.engine.run_async(self.engine.session.controls.start_profile(stage_ids))

    async def stop_profile(self, stage_ids: Sequence[int] | None = None) -> CollectiveAnswer:
        return await self.engine.run_async(self.engine.session.controls.stop_profile(stage_ids))

    async def reset_prefix_cache(self, stage_ids: Sequence[int] | None = None) -> CollectiveAnswer:
        return await self.engine.run_async(self.engine.session.controls.reset_prefix_cache(stage_ids))

    async def close(self) -> None:
        """See AsyncOmniEngine.shutdown; idempotent."""
        await asyncio.to_thread(self.engine.shutdown)

    async def _outputs(
        self, rid: str, box: OutputQueue[OmniRequestOutput], submitting: Coroutine[Any, Any, str]
    ) -> AsyncGenerator[OmniRequestOutput, None]:
        """Submit, and give what comes; a request that is left before its end is aborted, also on its way in."""
        finished = False
        try:
            await self.engine.run_async(submitting)
            while not finished:
                output = await box.take_async(None)  # bounded by the request's deadline, and by the engine's life
                assert output is not None
                finished = output.finished
                output.raise_for_failure()
                if output.delta or output.output is not None or output.aborted:
                    yield output
        except (asyncio.CancelledError, GeneratorExit):
            if not finished and self.engine.is_alive():
                await self.abort(rid)
            raise
        finally:
            self.engine.drop_box(box)

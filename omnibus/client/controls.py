"""Controls of the replicas of a pipeline: pause, sleep, profile, reset, under the names that vLLM has for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.client.rpc import LONGEST_TIMEOUT, CollectiveAnswer, collective_rpc, known_stages
from omnibus.errors import InvalidRequest
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.drain_orders import DrainOrders
from omnibus.registry.pause_state import PauseState, PauseStates, pause_mode

Stages = Sequence[int] | None
"""Stage ids; None: all stages, where a method says nothing else."""


class Controls:
    """Controls the replicas that there are, wherever they run.

    A pause and a sleep are of the stage: they are kept in the broker until they are undone, and replicas that join or
    start again meanwhile follow them, too. Everything else is for the replicas that there are now.
    """

    def __init__(self, connection: Connection, spec: PipelineSpec) -> None:
        self._connection, self.spec = connection, spec
        self._pause_states = PauseStates(connection, spec.name)
        self._drains = DrainOrders(connection, spec.name)

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        stage_ids: Stages = None,
    ) -> CollectiveAnswer:
        """See `client.rpc.collective_rpc`; stages that there are not are left out, with a warning."""
        unknown = set(stage_ids or ()) - {stage.stage_id for stage in self.spec.stages}
        if unknown and stage_ids is not None:
            warnings.warn(f"{method}: pipeline {self.spec.name!r} has no stages {sorted(unknown)}", stacklevel=2)
            stage_ids = [stage_id for stage_id in stage_ids if stage_id not in unknown]
        return await collective_rpc(
            self._connection, self.spec, method, timeout=timeout, args=args, kwargs=kwargs, stage_ids=stage_ids
        )

    async def pause_generation(
        self, mode: str = "abort", *, clear_cache: bool = True, stage_ids: Stages = None
    ) -> CollectiveAnswer:
        """Have replicas take no more tasks; returns when they have none in hand. New requests are accepted, and wait.

        `abort`: tasks in hand stop at once and go back to the queue; `wait`: they are finished first. No request is lost
        either way. `clear_cache`: forget cached prefixes, on stages that have them. Idempotent. Raises InvalidRequest for
        another mode, EngineError when a replica does not answer; the pause stands then all the same.
        """
        stages, pause_state = known_stages(self.spec, stage_ids), PauseState(mode=pause_mode(mode))
        held = await self._pause_states.of(stages)
        await self._pause_states.place([one for one in stages if one not in held or not held[one].asleep], pause_state)
        answer = await self._all("pause_generation", mode, stage_ids=stage_ids, stands=True)
        cached = self._cached(stage_ids)
        if clear_cache and cached:
            await self._all("reset_prefix_cache", stage_ids=cached, stands=True)
        return answer

    async def resume_generation(self, stage_ids: Stages = None) -> CollectiveAnswer:
        """Have paused replicas take tasks again; idempotent. Raises InvalidRequest for a stage that is asleep."""
        stages = known_stages(self.spec, stage_ids)
        for stage_id, pause_state in (await self._pause_states.of(stages)).items():
            if pause_state.asleep:
                raise InvalidRequest(f"stage {stage_id} is asleep: wake it up", param="stage_ids")
        await self._pause_states.lift(stages)
        await self._drains.lift_all(stages)
        return await self._all("resume_generation", stage_ids=stage_ids, stands=True)

    async def is_paused(self, stage_ids: Stages = None) -> bool:
        """Whether all replicas are paused, and any that joins a stage without one would be."""
        answer = await self._all("is_paused", stage_ids=stage_ids, stands=True)
        empty = set(known_stages(self.spec, stage_ids)) - {one.stage_id for one in answer.answers}
        return all(answer) and empty <= (await self._pause_states.of(empty)).keys()

    async def sleep(self, level: int = 1, *, mode: str = "abort", stage_ids: Stages = None) -> CollectiveAnswer:
        """Have replicas give their device memory back; their tasks wait, as in a pause. All of them, or none.

        What cannot be undone is refused: a level other than 1, an engine that cannot wake up. Then all are as they were: who
        slept already or was paused does so still. Idempotent. Raises InvalidRequest, or EngineError when a replica does not
        answer.
        """
        stages = known_stages(self.spec, stage_ids)
        sleepless = [one for one in stages if not engine_kind(self.spec.stage(one).engine).can_sleep]
        if sleepless:
            engines = ", ".join(self.spec.stage(one).engine for one in sleepless)
            raise InvalidRequest(f"stages {sleepless} cannot sleep: the engines are {engines}", param="stage_ids")
        before = await self._pause_states.of(stages)
        answer = await self._call("sleep", level, mode, stage_ids=stage_ids)
        if not answer.complete:
            await self._undo_sleep(stages, before)
            answer.raise_for_partial()
        await self._pause_states.place(stages, PauseState(asleep=True, mode=mode))
        return answer

    async def _undo_sleep(self, stages: Sequence[int], before: Mapping[int, PauseState]) -> None:
        asleep = {stage_id for stage_id, pause_state in before.items() if pause_state.asleep}
        await self._call("wake_up", stage_ids=[one for one in stages if one not in asleep])
        for stage_id in before.keys() - asleep:
            await self._call("pause_generation", before[stage_id].mode, stage_ids=[stage_id])

    async def wake_up(self, stage_ids: Stages = None) -> CollectiveAnswer:
        """Have sleeping replicas load their weights back and take tasks again; idempotent."""
        stages = known_stages(self.spec, stage_ids)
        await self._pause_states.lift(stages)
        await self._drains.lift_all(stages)
        return await self._all("wake_up", stage_ids=stage_ids, stands=True)

    async def is_sleeping(self, stage_ids: Stages = None) -> bool:
        """Whether all replicas are asleep."""
        return all(await self._all("is_sleeping", stage_ids=stage_ids))

    async def start_profile(self, stage_ids: Stages = None) -> CollectiveAnswer:
        """Start the profilers of these stages; None: of those that set one up, `vllm` by `profiler_config`.

        Raises InvalidRequest when no stage does, and for a stage that was named and has none.
        """
        return await self._all("start_profile", stage_ids=self._profiled(stage_ids))

    async def stop_profile(self, stage_ids: Stages = None) -> CollectiveAnswer:
        """Stop them, and have them write what they saw; raises as `start_profile`."""
        return await self._all("stop_profile", stage_ids=self._profiled(stage_ids))

    async def reset_prefix_cache(self, stage_ids: Stages = None) -> CollectiveAnswer:
        """Forget cached prefixes (`vllm`); raises InvalidRequest when none of the stages has a cache."""
        able = stage_ids if stage_ids is not None else self._cached(None)
        if able == []:
            raise InvalidRequest(f"no stage of pipeline {self.spec.name!r} has an engine with reset_prefix_cache")
        return await self._all("reset_prefix_cache", stage_ids=able)

    async def _call(self, method: str, *args: Any, stage_ids: Stages) -> CollectiveAnswer:
        known_stages(self.spec, stage_ids)
        return await self.collective_rpc(method, LONGEST_TIMEOUT, args, stage_ids=stage_ids)

    async def _all(self, method: str, *args: Any, stage_ids: Stages, stands: bool = False) -> CollectiveAnswer:
        """Raises unless every replica did it; of an order that `stands`, a stage without replicas lacks nobody."""
        answer = await self._call(method, *args, stage_ids=stage_ids)
        if stands:
            answer = replace(answer, empty_stages=())
        answer.raise_for_partial()
        return answer

    def _profiled(self, stage_ids: Stages) -> Stages:
        """The stages that were named, whatever they are; else those whose engine has a profiler."""
        if stage_ids is not None:
            return stage_ids
        profilers = {stage.stage_id: engine_kind(stage.engine).profiler for stage in self.spec.stages}
        able = [one for one, profiler in profilers.items() if self.spec.stage(one).engine_args.get(profiler or "")]
        if not able:
            hint = " or ".join(sorted({f"`{profiler}`" for profiler in profilers.values() if profiler}))
            how = f": {hint} among the engine_args of a stage sets one up" if hint else ""
            raise InvalidRequest(f"no stage of pipeline {self.spec.name!r} has a profiler{how}")
        return able

    def _cached(self, stage_ids: Stages) -> list[int]:
        """Those of the stages whose engine caches prefixes."""
        stages = [stage for stage in self.spec.stages if stage_ids is None or stage.stage_id in stage_ids]
        return [stage.stage_id for stage in stages if engine_kind(stage.engine).has_prefix_cache]

"""The specification of a pipeline: stages, the edges between them, and the bounds on what it accepts.

Specifications are written as YAML (`pipeline.loading`), checked (`pipeline.validation`) and deployed as MessagePack
into a KV bucket. The structs hold data only: a value of these types may be senseless until `validate` has passed it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

import msgspec

from omnibus.errors import PipelineError
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import STREAMED_MEDIA, EdgeMode, Forwarding, Route

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Pattern of a pipeline, stage, lane or request id: one token of a broker subject."""

LaneName = Literal["interactive", "batch"]
OVERFLOW_LANE = "overflow"
"""The lane behind `interactive` and before `batch`, for requests of a tenant beyond its share. No request can ask for it."""


class PayloadRule(StrEnum):
    """The way in which the outputs of a stage travel along an edge; the later, the stronger where edges share outputs."""

    AUTO = "auto"
    """Small outputs travel inside the message, others through shared memory where there is room, else the object store."""
    INLINE = "inline"
    """Inside the message, whatever the size; too large an envelope fails the request."""
    SHM = "shm"
    """Through shared memory of the host, whatever the size; the object store when that is full."""
    PEER = "peer"
    """Through shared memory of the host as above, and from there over TCP, also to readers on the same host."""
    DURABLE = "durable"
    """Through shared memory of the host as above, and written to the object store behind the message."""
    OBJECT = "object"
    """Through the object store, whatever the size."""


class CanarySpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A cheap request that each idle replica of a stage is asked. One that fails it is down, and started again."""

    request: dict[str, Any]
    """As a producer would send it, such as `{prompt: hello}`."""
    sources: dict[str, dict[str, Any]] = {}
    """Outputs of the stage's input sources, by stage name."""
    interval: float = 60.0
    """Seconds between two of them."""
    timeout: float = 30.0
    """Seconds in which it must be answered."""


class SpeechSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A caller's choices about the sound that a stage makes, or has made, as parameters of the stage."""

    voices: dict[str, dict[str, Any]] = {}
    """Voices by their names: the parameters of each, such as `{Ethan: {speaker: Ethan}}`."""
    speed: str | None = None
    """The parameter that takes a caller's `speed`, 1 being the usual one; None: it has none."""
    instructions: str | None = None
    """The parameter that takes a caller's `instructions`; None: it has none."""


class StageSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One stage: an engine and how it is run."""

    stage_id: int
    """Unique in the pipeline, not negative."""
    name: str
    """Unique in the pipeline; matches NAME_PATTERN."""
    engine: str
    """One of `pipeline.engines`."""
    model: str = ""
    """Path, hub name, or what the engine takes for one (`module:function` for `python`)."""
    revision: str | None = None
    """Revision of a hub model."""
    input_sources: tuple[int, ...] = ()
    """Stages whose outputs this one needs, all of them; empty: it starts from the request."""
    final_output: bool = False
    """Whether the stage's output is delivered to the caller, under `final_output_type`."""
    final_output_type: str | tuple[str, ...] | None = None
    """Modality: text, image, audio, video, json, …; several where the stage delivers more than one output."""
    on_demand: bool = False
    """Whether its output is made only for requests that name its modality; without it also for those that name none."""
    devices: str = ""
    """Comma-separated device ids, such as "0,1"; empty: whatever is visible. See `pipeline.devices`."""
    num_replicas: int = 1
    """Replicas that `omnibus serve` starts; workers elsewhere may add more. 0: only they serve the stage."""
    slots: int = 1
    """Tasks that one replica runs at the same time."""
    default_sampling_params: dict[str, Any] = {}
    """Sampling parameters, which a request's own override key by key."""
    python: str | None = None
    """Path of the interpreter that its replicas run under, of an environment of its own; None: that of the command that starts
    them. It belongs to a machine: what is deployed has none."""
    env: dict[str, str] = {}
    """Environment of the stage's replicas, added to the supervisor's."""
    engine_args: dict[str, Any] = {}
    """Arguments that are passed to the engine unchanged."""
    added_adapters: dict[str, str] = {}
    """LoRA adapters, name to place, that an operator added while it ran, over the engine's `lora_modules`. Deployments keep
    them."""
    input_processor: str | None = None
    """`module:function` that makes the engine's input of the request and the sources' outputs."""
    prompt_expand: str | None = None
    """`module:function` that expands the stage's input into a bundle: companions, such as a negative prompt, that run with it."""
    timeout: float | None = None
    """Seconds that one execution may take; beyond them its request fails with StageTimeout. None: as long as its deadline."""
    stall_timeout: float | None = None
    """Seconds without progress after which a replica counts as stuck, and is started again; None: what its engine says."""
    speech: SpeechSpec | None = None
    """None: there is nothing to choose."""
    canary: CanarySpec | None = None
    """None: replicas are asked nothing."""
    lb_policy: LoadBalancingPolicy = LoadBalancingPolicy.BROKER
    """Balancing policy: the broker's (the first replica with a free slot), or a directed one."""

    @property
    def final_types(self) -> tuple[str, ...]:
        """The modalities that the stage delivers, in order; empty where it delivers none."""
        given = self.final_output_type if self.final_output else None
        return (given,) if isinstance(given, str) else tuple(given or ())

    @property
    def declared_adapters(self) -> dict[str, str]:
        """The LoRA adapters of its file, name to place."""
        return self.engine_args.get("lora_modules") or {}

    @property
    def adapters(self) -> dict[str, str]:
        """The LoRA adapters that requests may name, and where they are."""
        return {**self.declared_adapters, **self.added_adapters}


class EdgeSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Settings of an edge that `input_sources` declares; an edge without settings has the defaults."""

    source: int
    target: int
    forwarding: Forwarding = Forwarding.ORCHESTRATOR
    payload: PayloadRule = PayloadRule.AUTO
    mode: EdgeMode | None = None
    """Whole outputs, or chunks while the source runs; None: as `async_chunk` says, and without it whole ones."""
    async_chunk: bool | None = None
    """The name that vLLM-Omni has for a mode: true is `stream`, false is `whole`."""

    @property
    def is_stream(self) -> bool:
        return self.mode is EdgeMode.STREAM or (self.mode is None and self.async_chunk is True)


class PipelineSpec(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True
):
    """A pipeline: a directed acyclic graph of stages. Durations are seconds. Its cached properties are no part of it."""

    name: str
    """Matches NAME_PATTERN; part of every subject."""
    lanes: tuple[LaneName, ...] = ("interactive",)
    deadline: float = 300.0
    """Time that a request may take when it sets no deadline of its own."""
    max_open_requests: int = 10_000
    """Bound on open requests; beyond it a new request is refused as Overloaded."""
    max_open_per_tenant: int | None = None
    """The same bound a tenant; None: only the pipeline's."""
    max_stored_bytes: int | None = None
    """Bytes that the broker keeps of waiting raw requests and of stored payloads, each; None: as many as it has room for."""
    tenant_share: int | None = 8
    """Open interactive requests of one tenant beyond which its next ones take the overflow lane, so that those of other
    tenants pass them; None: all are equal."""
    max_prompt_bytes: int = 1 << 20
    """Bound on a prompt; a larger one is refused as RequestTooLarge."""
    heartbeat_timeout: float = 10.0
    """Silence after which a replica counts as dead, and the lease of a task; replicas beat every sixth of it."""
    max_attempts: int = 5
    """Deliveries of one task that may be run."""
    max_flow_bytes: int = 1 << 30
    """Bound on all chunks of one stage for one request; beyond it the request fails with FlowTooLarge, where stages read them."""
    input_timeout: float | None = None
    """Silence of an open input after which its request fails with InputTimeout; None: the pipeline takes no open inputs."""
    stages: tuple[StageSpec, ...]
    edges: tuple[EdgeSpec, ...] = ()

    def lane_of(self, priority: int) -> LaneName:
        """The lane of a request of this priority that names none: above 0 it may wait."""
        return "batch" if priority > 0 and "batch" in self.lanes else "interactive"

    @property
    def stage_lanes(self) -> tuple[str, ...]:
        """The lanes of every stage, in the order in which they are served: those that requests name, and the overflow."""
        first, *others = sorted(self.lanes, key=("interactive", "batch").index)
        return (first, OVERFLOW_LANE, *others)

    def without_interpreters(self) -> PipelineSpec:
        """The same as another machine runs it: an interpreter's path says nothing there."""
        stages = tuple(msgspec.structs.replace(stage, python=None) for stage in self.stages)
        return msgspec.structs.replace(self, stages=stages)

    @cached_property
    def by_ref(self) -> Mapping[int | str, StageSpec]:
        """The stages by id, by name, and by the id as a text unless a stage is named so."""
        return {
            **{str(stage.stage_id): stage for stage in self.stages},
            **{stage.stage_id: stage for stage in self.stages},
            **{stage.name: stage for stage in self.stages},
        }

    @cached_property
    def routes(self) -> dict[frozenset[str], Route]:
        """Routes that were planned already, by their outputs; `routing.plan_route` keeps them here."""
        return {}

    def stage(self, ref: int | str) -> StageSpec:
        """Return the stage with this id or name ("1" is id 1 unless a stage is named so); PipelineError when there is none."""
        if ref in self.by_ref:
            return self.by_ref[ref]
        known = ", ".join(f"{stage.stage_id} ({stage.name})" for stage in self.stages)
        raise PipelineError(f"pipeline {self.name!r} has no stage {ref!r}; it has {known}", field="stages")

    def stage_name(self, stage_id: int) -> str:
        """Return the stage's name; its id when the pipeline was deployed anew without it."""
        found = self.by_ref.get(stage_id)
        return found.name if found is not None else str(stage_id)

    def edge(self, source: int, target: int) -> EdgeSpec:
        """Return the settings of the edge, the defaults where the file sets none; it need not be declared in `input_sources`."""
        for edge in self.edges:
            if (edge.source, edge.target) == (source, target):
                return edge
        return EdgeSpec(source=source, target=target)

    @cached_property
    def has_flows(self) -> bool:
        """Whether any request can have a flow: its input, between two stages, or of what a caller is sent while it is made."""
        outputs = {modality for stage in self.stages for modality in stage.final_types}
        streams = any(edge.is_stream for edge in self.edges) or not outputs.isdisjoint(STREAMED_MEDIA)
        return streams or self.input_timeout is not None

    @cached_property
    def adapters(self) -> tuple[str, ...]:
        """The LoRA adapters that requests may name."""
        return tuple(sorted({name for stage in self.stages for name in stage.adapters}))

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the pipeline delivers, each once, in the order of its stages."""
        return tuple(dict.fromkeys(modality for stage in self.stages for modality in stage.final_types))

    @cached_property
    def default_modalities(self) -> tuple[str, ...]:
        """Those of them that a request gets which names none."""
        stages = (stage for stage in self.stages if not stage.on_demand)
        return tuple(dict.fromkeys(modality for stage in stages for modality in stage.final_types))

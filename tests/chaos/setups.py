"""Where nemeses strike: served pipelines, each with the load that it is put under."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from msgspec.structs import replace

from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.pipeline.loading import load_pipeline
from omnibus.registry.death.claim_book import ClaimBook
from tests.chaos.clients.planned_request import RequestArguments, Size, Wish
from tests.chaos.ledger_watch import LedgerWatch
from tests.support.cluster import Cluster, pipeline_of
from tests.support.companion_stages import prompt_of
from tests.support.prefill_decode import prefill_decode
from tests.support.small_disk import small_disk
from tests.support.three_nodes import ThreeNodes
from tests.support.zoo import START, TALK, environment, import_pipeline
from tools.omni_tiny.grammar import sample_prompts

HEARTBEAT = 2.0
"""Seconds of silence after which a replica of the sim pipeline counts as dead."""
STALL = 2.0
"""Seconds without progress after which a replica of the sim pipeline counts as stuck."""
TINY_STALL = 10.0
"""The same of omni-tiny's language models, on a busy machine."""
READY = 120.0
"""Seconds for everything to come up, on a busy machine."""
WORDS = 24
"""Words of a streamed text."""
POISON = "kills-its-replica"
"""Part of the ids of requests that kill every replica that runs them."""
BROKEN = "fails-every-time"
"""Part of the ids of requests on which the engine fails every time."""

SIM = f"""
name: chaos
deadline: 60s
heartbeat_timeout: {HEARTBEAT}s
max_attempts: 4
stages:
- {{stage_id: 0, name: first, engine: sim, slots: 16, num_replicas: 2, stall_timeout: {STALL}s,
   engine_args: {{latency: [0.02, 0.2], crash_on: {{rid: {POISON}}}}}}}
- {{stage_id: 1, name: heavy, engine: sim, slots: 16, num_replicas: 2, input_sources: [0], lb_policy: round-robin,
   engine_args: {{latency: [0.02, 0.2], outputs: {{text: text, tensor: tensor}}, size: 80000}}}}
- {{stage_id: 2, name: speaker, engine: sim, slots: 16, num_replicas: 2, input_sources: [0, 1],
   final_output: true, final_output_type: text,
   engine_args: {{latency: 0.02, token_rate: 50, fail_on: {{rid: {BROKEN}}}}}}}
- {{stage_id: 3, name: painter, engine: sim, slots: 16, num_replicas: 1, input_sources: [1], stall_timeout: {STALL}s,
   final_output: true, final_output_type: image,
   engine_args: {{latency: 0.05, steps: 4, outputs: {{image: image}}, size: 64}}}}
edges:
- {{source: 0, target: 1, forwarding: direct}}
"""
"""Direct and orchestrated edges, a join, a streamed text of many deltas, payloads in memory, directed tasks."""

STAGES = "tests.support.companion_stages"
BUNDLES = f"""
name: companions
deadline: 60s
heartbeat_timeout: {HEARTBEAT}s
max_attempts: 4
stages:
- {{stage_id: 0, name: sim, engine: sim, slots: 8, num_replicas: 2, stall_timeout: {STALL}s, prompt_expand: "{STAGES}:expand",
   engine_args: {{latency: [0.02, 0.2], outputs: {{text: text, tensor: tensor}}, size: 80000}}}}
- {{stage_id: 1, name: speaker, engine: sim, slots: 16, num_replicas: 2, input_sources: [0], input_processor: "{STAGES}:against",
   final_output: true, final_output_type: text, engine_args: {{latency: 0.02, token_rate: 50}}}}
"""
"""Bundles whose members take different times, with payloads in memory, before a streamed text that has both."""

FLOWING = "tests.support.flowing_stages"
FLOWS = f"""
name: flows
deadline: 60s
heartbeat_timeout: {HEARTBEAT}s
max_attempts: 4
stages:
- {{stage_id: 0, name: writer, engine: python, model: "{FLOWING}:write", slots: 16, num_replicas: 2, stall_timeout: {STALL}s,
   engine_args: {{outputs: {{word: json, load: tensor}}}}}}
- {{stage_id: 1, name: speaker, engine: python, model: "{FLOWING}:speak", slots: 16, num_replicas: 2, input_sources: [0],
   stall_timeout: {STALL}s, final_output: true, final_output_type: text, engine_args: {{outputs: {{text: text}}}}}}
- {{stage_id: 2, name: singer, engine: python, model: "{FLOWING}:sing", slots: 16, num_replicas: 2, input_sources: [1],
   stall_timeout: {STALL}s, final_output: true, final_output_type: audio,
   engine_args: {{outputs: {{audio: audio, sample_rate: json}}}}}}
edges:
- {{source: 0, target: 1, mode: stream, forwarding: direct}}
- {{source: 1, target: 2, mode: stream}}
"""
"""A flow of chunks, and behind it one of a text; callers are sent the text, or its sound, while they run."""

LISTENING = "tests.support.listening_stages"
SESSIONS = f"""
name: sessions
deadline: 60s
heartbeat_timeout: {HEARTBEAT}s
input_timeout: 60s
max_attempts: 4
stages:
- {{stage_id: 0, name: ear, engine: python, model: "{LISTENING}:echo_slowly", slots: 16, num_replicas: 2, stall_timeout: {STALL}s,
   final_output: true, final_output_type: text, engine_args: {{outputs: {{text: text}}}}}}
"""
"""A stage that answers the segments of open inputs while they come."""

FILMING = "tests.support.filming_stages"
FILMS = f"""
name: films
deadline: 60s
heartbeat_timeout: {HEARTBEAT}s
max_attempts: 4
stages:
- {{stage_id: 0, name: painter, engine: sim, slots: 16, num_replicas: 2, stall_timeout: {STALL}s,
   engine_args: {{latency: 0.2, steps: 4, outputs: {{image: image}}, size: 64}}}}
- {{stage_id: 1, name: camera, engine: python, model: "{FILMING}:film", slots: 16, num_replicas: 2, input_sources: [0],
   stall_timeout: {STALL}s, final_output: true, final_output_type: video, engine_args: {{outputs: {{video: video, fps: json}}}}}}
"""
"""A picture, and a film of it, in steps."""

ZOO_CODE = "register,deploy"
"""Settings of vLLM-Omni's stages that have code loaded, and that their workers know from the broker alone."""


@dataclass(frozen=True, slots=True)
class Arena:
    """A pipeline that is up."""

    cluster: Cluster
    arguments: RequestArguments
    size: Size
    claims: ClaimBook
    ledger: LedgerWatch
    within: float
    """Seconds within which every request must be answered, faults included."""

    def stages(self) -> list[int]:
        return [stage.stage_id for stage in self.cluster.spec.stages]


def sim_wish(op: str) -> Wish:
    """A text whose words are all different, so that a piece of it has one place; every third wants a picture too."""
    text = " ".join(f"{op}.{number}" for number in range(WORDS))
    wants_all = hash_of(op) % 3 == 0
    return Wish(op=op, prompt=text, expects=text, modalities=("text", "image") if wants_all else ("text",))


def bundle_wish(op: str) -> Wish:
    """A prompt with a companion; now and then one of the two fails at the first attempt, or is slow."""
    main, negative = (" ".join(f"{op}.{part}{number}" for number in range(WORDS // 2)) for part in ("m", "n"))
    faults: Sequence[Mapping[str, object]] = ({}, {}, {}, {"fail_on": {"attempts": [1]}}, {"latency": 0.8})
    fault = faults[hash_of(op) % len(faults)]
    prompt = prompt_of(main, negative, **{("main", "negative")[hash_of(op) % 2]: fault})
    return Wish(op=op, prompt=prompt, expects=f"{main} not {negative}", modalities=("text",))


def flow_wish(op: str) -> Wish:
    """A text, or the sound of it."""
    text = " ".join(f"{op}.{number}" for number in range(WORDS))
    return Wish(op=op, prompt=text, expects=text, modalities=(("audio", "text")[hash_of(op) % 2],))


def session_wish(op: str) -> Wish:
    """A session of a few segments."""
    said = [f"{op}.{number}" for number in range(WORDS)]
    first, *others = (" ".join(said[start : start + 4]) for start in range(0, WORDS, 4))
    text = " ".join(said).upper()
    return Wish(op=op, prompt=first, segments=tuple(others), expects=f"{text} ", modalities=("text",))


def film_wish(op: str) -> Wish:
    """A film that shows its own text."""
    text = " ".join(f"{op}.{number}" for number in range(4))
    return Wish(op=op, prompt=text, expects=text, modalities=("video",))


def tiny_wish(op: str) -> Wish:
    """A sentence that omni-tiny knows; what it says to it is the model's business, but always the same."""
    prompts = sample_prompts(32, seed=5, held_out=False)
    wants_all = hash_of(op) % 3 == 0
    modalities = ("text", "image", "audio") if wants_all else ("text",)
    return Wish(op=op, prompt=prompts[hash_of(op) % len(prompts)], modalities=modalities)


def text_wish(op: str) -> Wish:
    """The same, of a text alone."""
    return Wish(op=op, prompt=tiny_wish(op).prompt, modalities=("text",))


def hash_of(op: str) -> int:
    """A number that depends on the name only."""
    return sum(map(ord, op))


@asynccontextmanager
async def chain(folder: Path) -> AsyncIterator[Arena]:
    """The sim pipeline on a single server, two orchestrators."""
    async with _open(_sim_cluster(folder), sim_wish, Size(), within=40.0) as arena:
        yield arena


@asynccontextmanager
async def three(folder: Path) -> AsyncIterator[Arena]:
    """The same on a cluster of three servers, everything in three copies."""
    cluster = _sim_cluster(folder, nats=ThreeNodes(folder / "nodes"))
    async with _open(cluster, sim_wish, Size(http_stream=3, http=2, python=2), within=55.0) as arena:
        yield arena


@asynccontextmanager
async def disk(folder: Path) -> AsyncIterator[Arena]:
    """The same on a server whose disk is small."""
    with small_disk(folder, "48m") as binary:
        server = EmbeddedServer(folder / "nats", binary=binary, profile="balanced", port=free_port())
        async with _open(_sim_cluster(folder, nats=server), sim_wish, Size(), within=55.0) as arena:
            yield arena


@asynccontextmanager
async def companions(folder: Path) -> AsyncIterator[Arena]:
    """The pipeline of bundles on a single server."""
    cluster = _bundle_cluster(folder)
    async with _open(cluster, bundle_wish, Size(), within=40.0) as arena:
        yield arena


@asynccontextmanager
async def flows(folder: Path) -> AsyncIterator[Arena]:
    """The pipeline of stages that read each other while they run, on a single server."""
    async with _open(_flow_cluster(folder), flow_wish, Size(), within=40.0) as arena:
        yield arena


@asynccontextmanager
async def sessions(folder: Path) -> AsyncIterator[Arena]:
    """The pipeline that listens, on a single server, two orchestrators."""
    size = Size(http_stream=0, http=0, python=0, raw=0, session=6, session_http=6)
    async with _open(_session_cluster(folder), session_wish, size, within=40.0) as arena:
        yield arena


@asynccontextmanager
async def films(folder: Path) -> AsyncIterator[Arena]:
    """The pipeline that makes films, on a single server, two orchestrators."""
    size = Size(http_stream=0, http=6, python=6, raw_pause=0.5)
    async with _open(_film_cluster(folder), film_wish, size, within=40.0) as arena:
        yield arena


@asynccontextmanager
async def omni_tiny(folder: Path) -> AsyncIterator[Arena]:
    """omni-tiny: real engines, whose streams come from a model."""
    spec = load_pipeline("omni-tiny")
    stages = (replace(one, stall_timeout=TINY_STALL) if one.engine == "vllm" else one for one in spec.stages)
    spec = replace(spec, deadline=200.0, stages=tuple(stages))
    cluster = Cluster(folder, spec, ready=240.0)
    size = Size(http_stream=2, http=2, python=1, raw_pause=2.0)
    async with _open(cluster, tiny_wish, size, within=180.0) as arena:
        yield arena


@asynccontextmanager
async def halves(folder: Path) -> AsyncIterator[Arena]:
    """omni-tiny's thinker as two stages, whose KV goes from one engine to the other."""
    spec = prefill_decode("chaos-halves", stall=TINY_STALL)
    cluster = Cluster(folder, spec, ready=240.0)
    size = Size(http_stream=3, http=2, python=1, raw_pause=1.0)
    async with _open(cluster, text_wish, size, within=180.0) as arena:
        yield arena


@asynccontextmanager
async def zoo(folder: Path) -> AsyncIterator[Arena]:
    """Two tiny language models of vLLM-Omni, a stage each, in an environment of their own, which takes minutes to make."""
    from tests.support.zoo_checkpoint import make_checkpoint  # noqa: PLC0415 imports torch

    with environment(folder / "environment") as python:
        file = import_pipeline(python, folder, TALK, make_checkpoint(folder / "tiny"))
        spec = load_pipeline(str(file))
        thinker, talker = spec.stages  # of both only the second one's text is wanted: it says what crossed
        spec = replace(spec, stages=(replace(thinker, final_output=False, final_output_type=None), talker))
        cluster = Cluster(folder, spec, ready=2 * START, modules=ZOO_CODE)  # their imports are not compiled yet
        size = Size(http_stream=2, http=1, python=1, raw_pause=2.0)
        async with _open(cluster, text_wish, size, within=START) as arena:
            yield arena


ARENAS: Mapping[str, Callable[[Path], AbstractAsyncContextManager[Arena]]] = MappingProxyType(
    {
        "chain": chain,
        "three": three,
        "disk": disk,
        "companions": companions,
        "flows": flows,
        "sessions": sessions,
        "films": films,
        "omni-tiny": omni_tiny,
        "prefill-decode": halves,
        "vllm_omni": zoo,
    }
)
"""By name, in the order in which they are fought in."""


def _sim_cluster(folder: Path, nats: EmbeddedServer | ThreeNodes | None = None) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    spec = pipeline_of(folder, SIM)
    counts = {stage.stage_id: stage.num_replicas for stage in spec.stages}
    return Cluster(folder, spec, replicas=counts, ready=READY, nats=nats, orchestrators=2)


def _bundle_cluster(folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    return Cluster(folder, pipeline_of(folder, BUNDLES), replicas={0: 2, 1: 2}, ready=READY, modules=STAGES)


def _flow_cluster(folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    replicas = {0: 2, 1: 2, 2: 2}
    spec = pipeline_of(folder, FLOWS)
    return Cluster(folder, spec, replicas=replicas, ready=READY, orchestrators=2, modules=FLOWING)


def _session_cluster(folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    spec = pipeline_of(folder, SESSIONS)
    return Cluster(folder, spec, replicas={0: 2}, ready=READY, orchestrators=2, modules=LISTENING)


def _film_cluster(folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    spec, settings = pipeline_of(folder, FILMS), {"OMNIBUS_ALLOWED_NETWORKS": "127.0.0.0/8"}  # for webhooks
    return Cluster(folder, spec, replicas={0: 2, 1: 2}, ready=READY, orchestrators=2, modules=FILMING, env=settings)


@asynccontextmanager
async def _open(cluster: Cluster, arguments: RequestArguments, size: Size, *, within: float) -> AsyncIterator[Arena]:
    async with (
        cluster,
        ClaimBook(cluster.connection, cluster.spec.name) as claims,
        LedgerWatch(cluster.connection, cluster.spec.name) as ledger,
    ):
        yield Arena(cluster, arguments, size, claims, ledger, within)

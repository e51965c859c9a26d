"""The table of engines: one entry says all that anybody asks of an engine."""

from __future__ import annotations

import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from omnibus.client.single_stage import pipeline_for
from omnibus.client.stage_info import stage_info
from omnibus.errors import CheckpointMissing, ConfigError, PipelineError
from omnibus.frontdoor.stage_params import stage_params
from omnibus.pipeline import engines
from omnibus.pipeline.devices import get_stage_devices_per_replica
from omnibus.pipeline.engines import BUILT_IN, EngineKind, engine_kind, engine_names
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.workers import engines as worker_engines
from omnibus.workers.engines import create_engine

pytestmark = pytest.mark.unit

PAINTER = EngineKind(
    name="painter",
    factory="omnibus.workers.engines.sim:SimEngine",
    stage_type="diffusion",
    gives=frozenset({"image"}),
    parameters=frozenset({"image"}),
    devices=lambda args: args["gpus"],
    arguments=frozenset({"gpus"}),
)
PLAIN = EngineKind(name="plain", factory="omnibus.workers.engines.sim:SimEngine")
FLAGGED = replace(PLAIN, takes_media=True)  # type: ignore[arg-type] as it was declared once
MISSPELT = replace(PLAIN, takes_media=frozenset({"images"}))
WRONG = "no kind"
Install = Callable[..., None]


def _forget() -> None:
    engines._points.cache_clear()
    engines._installed.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs entry points, `name=module:object`, as packages would."""

    def installed(*given: str) -> None:
        points = [
            importlib.metadata.EntryPoint(*one.split("=", 1), group=engines.ENTRY_POINTS)  # type: ignore[call-arg]
            for one in given
        ]
        _forget()
        monkeypatch.setattr(
            engines, "entry_points", lambda **wanted: importlib.metadata.EntryPoints(points).select(**wanted)
        )

    yield installed
    _forget()


def _pipeline(engine: str, args: str = "{}", modality: str = "image") -> PipelineSpec:
    return parse_pipeline(
        f"name: p\nstages:\n- {{stage_id: 0, name: s, engine: {engine}, engine_args: {args},"
        f" final_output: true, final_output_type: {modality}}}"
    )


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.name)
def test_factory_of_every_entry_exists(kind: EngineKind) -> None:
    assert callable(pkgutil.resolve_name(kind.factory))


def test_everybody_knows_an_engine_when_its_package_is_installed(install: Install) -> None:
    install(f"brush={__name__}:PAINTER")
    spec = _pipeline("brush", "{gpus: 3}")

    assert engine_names()[-1] == "brush"
    assert get_stage_devices_per_replica(spec.stages[0]) == 3
    assert stage_info(spec.stages[0]).stage_type == "diffusion"
    assert stage_params(spec, None, text={"temperature": 1}, image={"size": "8x8"}) == {"s": {"size": "8x8"}}
    assert create_engine(StageSpec(stage_id=0, name="s", engine="brush")).outputs == {"text": "text"}


def test_file_is_refused_when_it_asks_of_an_engine_what_it_does_not_have(install: Install) -> None:
    install(f"brush={__name__}:PAINTER")
    with pytest.raises(
        PipelineError, match=r"engine_args\.gpu: the engine brush has no such argument; did you mean gpus"
    ):
        _pipeline("brush", "{gpu: 3}")
    install(f"plain={__name__}:PLAIN", f"brush={__name__}:PAINTER")
    with pytest.raises(PipelineError, match=r"engine_args\.gpu: the engine plain has no such argument; it takes none"):
        _pipeline("plain", "{gpu: 3}")
    with pytest.raises(PipelineError, match=r"final_output_type: the engine brush delivers image, not audio"):
        _pipeline("brush", "{gpus: 1}", modality="audio")
    with pytest.raises(PipelineError, match=r"'brushh' is not one of .*sim, brush, plain; did you mean brush"):
        _pipeline("brushh")
    with pytest.raises(
        PipelineError, match=r"'loudly' is not one of .*plain; the package of an engine must be installed here"
    ):
        _pipeline("loudly")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([f"other={__name__}:WRONG"], "is no EngineKind but a str"),
        ([f"other={__name__}:FLAGGED"], "takes_media is True: give a set of audio, image, video"),
        ([f"other={__name__}:MISSPELT"], r"takes_media is frozenset\(\{'images'\}\): give a set of"),
        (["other=no_such_module_at_all:ENGINE"], "cannot be loaded: ModuleNotFoundError"),
        ([f"other={__name__}:PAINTER", f"other={__name__}:WRONG"], "comes from several packages"),
    ],
)
def test_only_stages_of_an_engine_are_refused_when_its_package_is_broken(
    install: Install, points: list[str], message: str
) -> None:
    install(*points)
    with pytest.raises(PipelineError, match=rf"stages\[0\]\.engine: engine 'other' .*{message}"):
        _pipeline("other")
    assert _pipeline("sim").stages[0].engine == "sim"


def test_own_engine_is_meant_when_a_package_takes_its_name(install: Install) -> None:
    install("sim=no_such_module_at_all:ENGINE")
    assert engine_kind("sim").factory == "omnibus.workers.engines.sim:SimEngine"
    with pytest.raises(ConfigError, match="no engine 'else' is installed here; there are diffusers"):
        engine_kind("else")


@pytest.mark.parametrize(
    ("file", "engine", "modality", "slots"),
    [("model_index.json", "diffusers", "image", 1), ("config.json", "vllm", "text", 64)],
)
def test_checkpoint_is_served_by_the_engine_that_knows_its_file(
    tmp_path: Path, file: str, engine: str, modality: str, slots: int
) -> None:
    (tmp_path / file).touch()
    (stage,) = pipeline_for(tmp_path, {}).stages
    assert (stage.engine, stage.final_output_type, stage.slots) == (engine, modality, slots)


def test_folder_is_refused_when_no_engine_knows_a_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"it has no model_index\.json or config\.json"):
        pipeline_for(tmp_path, {})


@pytest.mark.parametrize(
    ("args", "devices"),
    [
        ({"tensor_parallel_size": None, "pipeline_parallel_size": None, "data_parallel_size": None}, 1),
        ({"tensor_parallel_size": 2, "data_parallel_size_local": None, "data_parallel_size": 3}, 6),
        ({"tensor_parallel_size": 2, "data_parallel_size_local": 1, "data_parallel_size": 8}, 2),
    ],
)
def test_null_counts_as_absent_when_devices_are_counted(args: dict[str, int | None], devices: int) -> None:
    assert get_stage_devices_per_replica(StageSpec(stage_id=0, name="s", engine="vllm", engine_args=args)) == devices


class Wordless:
    """An engine whose author has read an older protocol: it does not tell its progress."""

    start = generate = abort = stats = dead = wait_dead = rpc = close = outputs = staticmethod(lambda: None)


def test_engine_is_refused_by_the_name_of_the_method_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_engines, "load_object", lambda *_: lambda _stage: Wordless())
    with pytest.raises(ConfigError, match=r"engine .python. has no method .progress."):
        create_engine(StageSpec(stage_id=0, name="s", engine="python", model="m:f"))

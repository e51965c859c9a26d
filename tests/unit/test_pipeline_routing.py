"""Routing: exactly the stages that the wanted outputs need, in an order that works."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from omnibus.errors import InvalidRequest, PipelineError, UnsupportedModality
from omnibus.pipeline.route import Forwarding, Route, RouteStage, Target
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.pipeline.validation import validate

pytestmark = pytest.mark.unit

MODALITIES = ("text", "image", "audio")


def _stage(stage_id: int, sources: tuple[int, ...] = (), final: str | None = None) -> StageSpec:
    return StageSpec(
        stage_id=stage_id,
        name=f"s{stage_id}",
        engine="sim",
        input_sources=sources,
        final_output=final is not None,
        final_output_type=final,
    )


OMNI = PipelineSpec(
    name="omni",
    stages=(
        _stage(0, final="text"),
        _stage(1, (0,), final="image"),
        _stage(2, (0,)),
        _stage(3, (2,), final="audio"),
        _stage(4, (3, 1), final="video"),
    ),
    edges=(EdgeSpec(source=2, target=3, forwarding=Forwarding.DIRECT),),
)
ORCHESTRATOR, DIRECT = Forwarding.ORCHESTRATOR, Forwarding.DIRECT


@pytest.mark.parametrize(
    ("modalities", "stages"),
    [
        (("text",), [0]),
        (("image",), [0, 1]),
        (("audio",), [0, 2, 3]),
        (("audio", "text"), [0, 2, 3]),
        (("video",), [0, 1, 2, 3, 4]),
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_route_runs_only_needed_stages_when_outputs_are_chosen(
    modalities: tuple[str, ...] | None, stages: list[int]
) -> None:
    assert [stage.stage_id for stage in plan_route(OMNI, modalities).stages] == stages


def test_route_is_cut_down_when_one_output_is_chosen() -> None:
    assert plan_route(OMNI, ("audio",)) == Route(
        stages=(
            RouteStage(0, (), (Target(2, ORCHESTRATOR),), None),
            RouteStage(2, (0,), (Target(3, DIRECT),), None),
            RouteStage(3, (2,), (), "audio"),
        )
    )


def test_join_lists_its_sources_ascending_when_the_file_does_not() -> None:
    route = plan_route(OMNI)
    assert route[4].sources == (1, 3)
    assert route[4].is_join
    assert route[1].targets == (Target(4, ORCHESTRATOR),)


def test_all_final_stages_run_when_they_share_a_modality() -> None:
    spec = PipelineSpec(name="twins", stages=(_stage(0), _stage(1, (0,), "image"), _stage(2, (0,), "image")))
    assert [stage.stage_id for stage in plan_route(spec, ("image",)).finals] == [1, 2]


@pytest.mark.parametrize(
    ("modalities", "final", "also"),
    [(None, "video", ("audio",)), (("audio",), "audio", ()), (("audio", "video"), "video", ("audio",))],
)
def test_wanted_outputs_of_a_stage_are_delivered_when_it_has_several(
    modalities: tuple[str, ...] | None, final: str, also: tuple[str, ...]
) -> None:
    film = StageSpec(stage_id=0, name="film", engine="sim", final_output=True, final_output_type=("video", "audio"))
    spec = PipelineSpec(name="film", stages=(film,))

    (stage,) = plan_route(spec, modalities).stages

    assert spec.modalities == ("video", "audio")
    assert (stage.final, stage.also) == (final, also)


def test_output_on_demand_runs_only_for_requests_that_name_it() -> None:
    *stages, film = OMNI.stages
    spec = replace(OMNI, stages=(*stages, replace(film, on_demand=True)))
    validate(spec)

    assert spec.modalities == ("text", "image", "audio", "video")
    assert [stage.stage_id for stage in plan_route(spec).stages] == [0, 1, 2, 3]
    assert [stage.stage_id for stage in plan_route(spec, ("video",)).stages] == [0, 1, 2, 3, 4]
    assert [stage.final for stage in plan_route(spec).finals] == ["text", "image", "audio"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (_stage(1, (0,)), "on_demand: needs final_output"),
        (_stage(1, (0,), "text"), "all outputs are on_demand"),
    ],
)
def test_on_demand_is_refused_where_nothing_would_be_delivered_otherwise(changed: StageSpec, message: str) -> None:
    last = () if changed.final_output else (_stage(2, (1,), "text"),)
    spec = PipelineSpec(name="film", stages=(_stage(0), replace(changed, on_demand=True), *last))
    with pytest.raises(PipelineError, match=message):
        validate(spec)


def test_unknown_modality_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnsupportedModality, match="does not produce 'smell'; it produces text, image, audio, video"):
        plan_route(OMNI, ("text", "smell"))


def test_empty_selection_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        plan_route(OMNI, ())


@st.composite
def pipelines(draw: st.DrawFn) -> PipelineSpec:
    """Valid graphs: stage ids shuffled against the topological order, leaves made final."""
    count = draw(st.integers(1, 8))
    ids = draw(st.permutations(range(count)))
    sources = [tuple(draw(st.sets(st.sampled_from(ids[:place])))) if place else () for place in range(count)]
    feeding = {source for entry in sources for source in entry}
    modality = st.sampled_from(MODALITIES)
    finals = [draw(modality if stage_id not in feeding else st.none() | modality) for stage_id in ids]
    stages = tuple(_stage(*stage) for stage in draw(st.permutations(list(zip(ids, sources, finals, strict=True)))))
    edges = tuple(
        EdgeSpec(source=stage.input_sources[0], target=stage.stage_id, forwarding=DIRECT)
        for stage in stages
        if len(stage.input_sources) == 1 and draw(st.booleans())
    )
    return PipelineSpec(name="random", stages=stages, edges=edges)


def _needed(spec: PipelineSpec, wanted: set[str]) -> set[int]:
    """The definition, as a fixed point: what is wanted, and whatever something needed lists as its source."""
    needed = {stage.stage_id for stage in spec.stages if stage.final_output_type in wanted}
    while True:
        more = needed | {source for stage in spec.stages if stage.stage_id in needed for source in stage.input_sources}
        if more == needed:
            return needed
        needed = more


@given(spec=pipelines(), data=st.data())
def test_route_is_exact_and_topological_when_the_graph_is_random(spec: PipelineSpec, data: st.DataObject) -> None:
    validate(spec)
    wanted = data.draw(st.none() | st.sets(st.sampled_from(spec.modalities), min_size=1))

    route = plan_route(spec, None if wanted is None else tuple(wanted))

    order = [stage.stage_id for stage in route.stages]
    effective = set(spec.modalities) if wanted is None else wanted
    assert set(order) == _needed(spec, effective)
    assert len(order) == len(set(order))
    for place, stage in enumerate(route.stages):
        assert set(stage.sources) == set(spec.stage(stage.stage_id).input_sources)
        assert set(stage.sources) <= set(order[:place])
        assert [target.stage_id for target in stage.targets] == sorted(
            other.stage_id for other in route.stages if stage.stage_id in other.sources
        )
        for target in stage.targets:
            assert target.forwarding is spec.edge(stage.stage_id, target.stage_id).forwarding
            assert target.forwarding is ORCHESTRATOR or not route[target.stage_id].is_join
    finals = {stage.stage_id: stage.final for stage in route.finals}
    assert finals == {
        stage.stage_id: stage.final_output_type for stage in spec.stages if stage.final_output_type in effective
    }


@given(spec=pipelines(), data=st.data())
def test_route_does_not_depend_on_the_order_of_the_file(spec: PipelineSpec, data: st.DataObject) -> None:
    shuffled = PipelineSpec(name=spec.name, stages=tuple(data.draw(st.permutations(spec.stages))), edges=spec.edges)
    assert plan_route(shuffled) == plan_route(spec)

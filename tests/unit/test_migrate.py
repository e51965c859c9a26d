"""A user's way from `vllm serve --omni`, flag by flag: docs/guide/migrate.md says nothing that is not so."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from omnibus.cli import COMMANDS
from omnibus.cli.options import SETTING
from omnibus.errors import PipelineError
from omnibus.pipeline.loading import load_pipeline, parse_pipeline
from omnibus.pipeline.overrides import lb_policies, override_stages
from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import StageInput
from omnibus.workers.object_loading import load_object
from tests.support.migrate import GUIDE, Row, nested_overrides, rows, scenarios, translate

pytestmark = pytest.mark.unit

TABLE = rows()
SAMPLES = {
    "ADDRESS": "10.0.0.2:6379", "FILE": "omni.yaml", "HOST": "10.0.0.1", "IP": "10.0.0.3", "KEY": "secret", "N": "2",
    "JSON": """'{"1": {"gpu_memory_utilization": 0.8, "devices": "0"}}'""", "LIST": "*", "NAME": "some/name", "PORT": "4300",
    "POLICY": "round-robin", "S": "30", "X": "0.5", "multi_process": "multi_process",
}  # fmt: skip
KNOWN = shlex.split(
    "--omni --headless --stage-id --replica-id --omni-dp-size-local --omni-lb-policy --omni-heartbeat-timeout "
    "--omni-master-address --omni-master-port --omni-replica-address --stage-init-timeout --init-timeout --log-stats "
    "--stage-overrides --async-chunk --no-async-chunk --worker-backend"
)


def _flags(row: Row) -> str:
    return " ".join(row.flags)


def parsed(words: list[str]) -> click.Context:
    """The command line as our own parser takes it, without running it; UsageError when it does not."""
    program, name, *rest = words
    assert program == "omnibus"
    return COMMANDS[name].load().make_context(name, rest)


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of the broker's password that the commands name."""
    (tmp_path / "nats.credentials").touch()
    monkeypatch.chdir(tmp_path)


def theirs(row: Row, *more: str) -> str:
    given = [f"{flag} {SAMPLES[value]}" if value else flag for flag, value in row.flags.items()]
    return " ".join(["vllm serve MODEL --omni", *more, *(words for words in given if words != "--omni")])


def test_every_known_flag_has_a_row() -> None:
    """parity: section 5, theirs → here."""
    assert set(KNOWN) <= {flag for row in TABLE for flag in row.flags}


@pytest.mark.parametrize("row", [row for row in TABLE if "--headless" not in row.flags], ids=_flags)
def test_flag_is_taken_or_explained_when_a_head_had_it(row: Row) -> None:
    assert parsed(translate(theirs(row), TABLE)).info_name == "serve"
    assert row.serve or row.reason


@pytest.mark.parametrize("row", TABLE, ids=_flags)
def test_flag_is_taken_or_explained_when_a_headless_process_had_it(row: Row) -> None:
    more = [] if "--stage-id" in row.flags else ["--stage-id 1"]
    more += [] if "--headless" in row.flags else ["--headless"]
    assert parsed(translate(theirs(row, *more), TABLE)).info_name == "worker"
    assert row.serve or row.worker or row.reason


@pytest.mark.parametrize(("before", "after"), scenarios(), ids=["A", "B", "C"])
def test_scenario_is_what_its_old_command_lines_become(before: list[str], after: list[str]) -> None:
    """parity: scenarios A, B and C."""
    assert [translate(line, TABLE) for line in before] == [shlex.split(line) for line in after]
    for line in after:
        parsed(shlex.split(line))


def test_every_command_of_ours_in_the_guide_is_one_that_omnibus_takes() -> None:
    lines = [line for line in GUIDE.read_text().splitlines() if line.startswith("omnibus ")]
    assert len(lines) == 10
    for line in lines:
        parsed(shlex.split(line))


def test_file_of_two_halves_in_the_guide_is_valid() -> None:
    """parity: is_prefill_only, is_decode_only."""
    text = GUIDE.read_text().partition("## Prefill and decode apart")[2].partition("```yaml\n")[2].partition("```")[0]
    spec = parse_pipeline(text)
    assert [stage.engine_args for stage in spec.stages] == [{"role": "prefill"}, {"role": "decode"}]
    assert spec.stages[1].input_sources == (spec.stages[0].stage_id,)


def test_values_arrive_where_they_belong_when_a_command_line_is_rewritten() -> None:
    line = (
        "vllm serve Qwen/Qwen2.5-Omni-7B --omni --stage-id 1 --omni-dp-size-local 3 --omni-lb-policy random "
        "--omni-master-address 10.1.1.1 --omni-master-port 4321 --init-timeout 900 --log-stats --replica-id 4"
    )
    context = parsed(translate(line, TABLE))
    params = {**context.params, **{name.removeprefix(SETTING): value for name, value in context.meta.items()}}
    assert (params["pipeline"], params["stages"], params["replicas"]) == ("qwen2.5-omni-7b.yaml", "1", 3)
    assert (params["nats_host"], params["nats_port"], params["lb_policy"]) == ("10.1.1.1", 4321, ("random",))
    assert (params["init_timeout"], params["log_stats"]) == (900.0, True)


def test_overrides_are_valid_when_rewritten() -> None:
    flat = '{"1": {"slots": 2}, "0": {"gpu_memory_utilization": 0.8, "devices": "0"}}'
    changed = override_stages(load_pipeline("omni-tiny"), [nested_overrides(flat)])
    assert changed.stages[0].engine_args["gpu_memory_utilization"] == 0.8
    assert (changed.stages[0].devices, changed.stages[1].slots) == ("0", 2)
    assert json.loads(nested_overrides(flat))["1"] == {"slots": 2}


def test_policies_are_known_here_when_taken_over() -> None:
    spec = load_pipeline("omni-tiny")
    for policy in ("random", "round-robin", "least-queue-length"):
        assert override_stages(spec, lb_policies(spec, [policy])).stages[0].lb_policy == policy


def test_flag_that_the_guide_forgot_is_noticed() -> None:
    with pytest.raises(KeyError, match="--some-new-flag"):
        translate("vllm serve MODEL --omni --some-new-flag 3", TABLE)


def blocks(section: str, language: str) -> list[str]:
    """Blocks of code in a section of the guide."""
    text = GUIDE.read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_companions_of_guidance_are_made_when_a_file_is_rewritten_as_the_guide_has_it() -> None:
    """parity: prompt_expand_func, cfg_kv_collect_func."""
    theirs, ours = blocks("Companions of guidance", "yaml")
    with pytest.raises(PipelineError, match="stage_args: unknown field"):
        parse_pipeline(theirs)
    thinker, painter = parse_pipeline(ours).stages
    with pytest.raises(PipelineError, match=r"prompt_expand_func: unknown field; did you mean prompt_expand\?"):
        parse_pipeline(ours.replace("prompt_expand:", "prompt_expand_func:"))

    request = Request(prompt="a cat", sampling_params={painter.name: {"negative_prompt": "dogs"}})
    bundle = load_object(thinker.prompt_expand or "", "prompt_expand")(StageInput(rid="r", request=request))
    assert {role: one.request.prompt for role, one in bundle.items()} == {"negative": "dogs"}

    (code,) = blocks("Companions of guidance", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    cats, dogs = np.zeros((3, 1, 4)), np.ones((2, 1, 4))
    given = StageInput(rid="r", request=request, sources={thinker.name: {"hidden_states": cats}})
    assert names["painter_input"](given).values.keys() == {"prompt_embeds"}
    given = replace(given, companions={thinker.name: {"negative": {"hidden_states": dogs}}})
    assert names["painter_input"](given).values["negative_prompt_embeds"].tolist() == [[1.0] * 4] * 2

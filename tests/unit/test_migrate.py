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

from omnibus.cli import COMMANDS, main
from omnibus.cli.options import SETTING
from omnibus.cli.vllm_flags import ELSEWHERE, elsewhere
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


def taken(command: str) -> set[str]:
    """The options of a command, without those that are there to be refused."""
    options = [one for one in COMMANDS[command].load().params if isinstance(one, click.Option) and not one.hidden]
    return {name for one in options for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("row", TABLE, ids=_flags)
def test_error_for_a_flag_says_what_its_row_says(row: Row) -> None:
    for flag in row.flags.keys() - taken("serve"):
        text = elsewhere(flag)
        assert text is not None, "typed at `omnibus serve`, it is no such option"
        for word in (*row.serve, *row.worker):
            name = word.partition("=")[0]
            if name.startswith("--") and name != "--credentials":
                assert name in text
            if ".engine_args." in name:
                assert f"--stage-overrides {name}=" in text


def test_flags_that_an_error_names_stand_in_the_guide_and_are_not_taken_here() -> None:
    assert ELSEWHERE.keys() <= {flag for row in TABLE for flag in row.flags}
    assert not ELSEWHERE.keys() & (taken("serve") | taken("worker"))


@pytest.mark.parametrize("command", ["serve", "up", "worker"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tensor-parallel-size", "2"], "--stage-overrides 0.engine_args.tensor_parallel_size=N"),
        (["--max_model_len=4096"], "--stage-overrides 0.engine_args.max_model_len=N"),
        (["--omni"], "leave it out"),
        (["--stage-configs-path", "stages.yaml"], "the first argument"),
        (["--dtype", "bfloat16"], "engine_args in the file"),
    ],
    ids=str,
)
def test_flag_of_vllm_is_refused_with_words_that_say_where_it_belongs(
    command: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--stage", "0"] if command == "worker" else ["omni-tiny"]
    with pytest.raises(SystemExit) as caught:
        main([command, *model, *words])
    *_usage, line = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert line.startswith(f"Error: {words[0].partition('=')[0]} is vLLM's; here ")
    assert said in line
    assert "Did you mean" not in line


def test_flag_of_nobody_is_no_such_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "omni-tiny", "--tensor-paralel-size", "2"])
    assert (caught.value.code, "No such option" in capsys.readouterr().err) == (2, True)


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

"""A fleet of processes of this tree and of one that was landed before: upgraded one by one under load, and nothing fails.

The earlier one is taken from this repository's history. Without that (an archive, a shallow clone) nothing can be built of
it, and the test is skipped; `tests/unit/test_golden.py` reads the messages of earlier trees everywhere.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from omnibus.requests.state import RequestState
from omnibus.workers.engines.sim import expected_text
from tests.support.cluster import Cluster, pipeline_of
from tests.support.load import Load

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
BEFORE = os.environ.get("OMNIBUS_MIXED_WITH", "c1d27c5")
"""A commit whose processes may meet those of this tree."""
PIPELINE = """
name: mixed
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: writer, engine: sim, slots: 4, engine_args: {latency: [0.0, 0.1]}}
- {stage_id: 1, name: painter, engine: sim, slots: 4, input_sources: [0], lb_policy: round-robin,
   engine_args: {latency: [0.0, 0.1], outputs: {latent: tensor}, size: 400000}}
- {stage_id: 2, name: teller, engine: sim, slots: 4, input_sources: [0, 1], final_output: true, final_output_type: text,
   engine_args: {latency: [0.0, 0.1], outputs: {text: text}}}
"""
"""A linear edge, one that is directed, a join, and payloads outside of messages."""


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(("git", "-C", str(ROOT), *words), capture_output=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier tree, as a folder that Python imports from."""
    shallow = git("rev-parse", "--is-shallow-repository")
    if shallow.returncode or shallow.stdout.strip() == b"true":
        pytest.skip(
            f"this tree has no history, so nothing can be built of {BEFORE}: fetch all of it (git fetch --unshallow)"
        )
    packed = git("archive", BEFORE, "omnibus")
    assert packed.returncode == 0, f"{BEFORE} is not in this repository's history: {packed.stderr.decode()}"
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    "order",
    [
        ("worker-0", "worker-1", "worker-2", "orchestrator", "frontdoor"),
        ("frontdoor", "orchestrator", "worker-2", "worker-1", "worker-0"),
    ],
    ids=["workers first", "front door first"],
)
async def test_no_request_fails_when_a_fleet_is_upgraded_process_by_process(
    tmp_path: Path, earlier: Path, order: Sequence[str]
) -> None:
    spec = pipeline_of(tmp_path, PIPELINE)
    async with Cluster(tmp_path / "cluster", spec, env={"PYTHONPATH": str(earlier)}) as cluster:
        assert {one.versions["omnibus"] for one in cluster.view.replicas()}
        assert str(earlier) in _environment(cluster.pid("worker-0"))
        async with Load(cluster.connection, spec, cluster.url, http_callers=4, raw_pause=0.1) as load:
            await load.more(20)
            cluster.env = {}
            for name in order:
                await replace(cluster, name)
                await load.more(20)
            load.finish()
        results = await load.results()
        await load.check_ended_once()
        await load.check_nothing_queued()
        assert all(str(earlier) not in _environment(pid) for pid in cluster.pids().values())
    assert {result.state for result in results.values()} == {RequestState.DONE}
    assert {rid: result.outputs[0].text for rid, result in results.items()} == {
        rid: expected_text(prompt) for rid, prompt in load.prompts.items()
    }
    assert len(results) >= 20 * (len(order) + 1)


async def replace(cluster: Cluster, name: str) -> None:
    """Have the process of present code serve before the earlier one ends; of the front door after, as it has one port."""
    if name == "frontdoor":
        await cluster.stop(name)
        await cluster.front_door()
        await cluster.wait_up()
        return
    if name == "orchestrator":
        await cluster.orchestrator("orchestrator-new")
    else:
        await cluster.worker(int(name[-1]), name=f"{name}-new")
        await cluster.wait_up(
            {stage.stage_id: 2 if name == f"worker-{stage.stage_id}" else 1 for stage in cluster.spec.stages}
        )
    await cluster.stop(name)


def _environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")

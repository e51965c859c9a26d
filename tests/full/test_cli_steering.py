"""Commands that show and steer what is served: `top`, `queue`, `requests`, `replicas`, `bench`; and `nats micro`'s questions."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import nats
import pytest
from nats.micro import service

from tests.support.served import SIM_PIPELINE, omnibus, write_pipeline
from tests.support.terminal import Terminal
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("steering")
    flags = ("--port", "0", "--nats-port", "0")
    lasting = SIM_PIPELINE.replace("deadline: 30s", "deadline: 150s")  # a request that hangs is looked at for long
    with serving(str(write_pipeline(folder, lasting)), *flags, state_dir=folder / "state") as running:
        yield running


def shown(served: Serving, *words: str) -> list[Any]:
    done = omnibus(*words, "--json", nats=served.nats_url)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_top_queue_and_requests_agree_about_a_request_that_hangs(served: Serving) -> None:
    with Terminal(
        "submit", "a red circle", "--rid", "hang-1", "-m", "text", OMNIBUS_NATS_URL=served.nats_url
    ) as hanging:

        async def taken() -> list[Any]:
            (queues,) = await asyncio.to_thread(shown, served, "queue")
            return [one for one in queues["queues"] if one["in_flight"]]

        (lane,) = asyncio.run(eventually(taken, timeout=20.0))
        assert (lane["stage"], lane["lane"], lane["waiting"], lane["replicas_up"]) == ("writer", "interactive", 0, 1)
        looks = shown(served, "top", "--count", "2", "--every", "0.2")
        assert [look["pipeline"] for look in looks] == ["simple", "simple"]
        busy = {stage["stage"]: stage["busy"] for stage in looks[-1]["stages"]}
        assert busy == {"writer": 1, "painter": 0, "speaker": 0}
        assert [look["stages"][0]["taken_rate"] is None for look in looks] == [True, False]
        (found,) = shown(served, "requests", "--open", "--stage", "writer")
        assert (found["request_id"], found["state"], found["at"]) == ("hang-1", "open", ["writer"])
        assert shown(served, "requests", "--open", "--stage", "painter") == []
        hanging.interrupt()
        hanging.wait()
    assert "hang-1" in {one["request_id"] for one in shown(served, "requests", "--state", "cancelled")}


def test_drained_replica_takes_no_task_until_it_is_resumed(served: Serving) -> None:
    def replica() -> dict[str, Any]:
        (found,) = json.loads(omnibus("replicas", "list", "--stage", "speaker", "--json", nats=served.nats_url).stdout)
        return found  # type: ignore[no-any-return]

    assert (replica()["name"], replica()["status"]) == ("speaker.r0", "up")
    assert omnibus("replicas", "drain", "speaker.r0", nats=served.nats_url).stdout == "speaker.r0: drained\n"
    assert (replica()["status"], replica()["paused"]) == ("draining", True)
    plain = omnibus("replicas", "list", nats=served.nats_url).stdout
    assert "draining, paused" in plain
    words = ("submit", "hello", "--rid", "spoken", "-m", "audio", "-o", str(served.log.parent / "out"))
    with Terminal(*words, OMNIBUS_NATS_URL=served.nats_url) as waiting:

        async def waits() -> list[Any]:
            (queues,) = await asyncio.to_thread(shown, served, "queue")
            return [one for one in queues["queues"] if one["stage"] == "speaker" and one["waiting"]]

        (lane,) = asyncio.run(eventually(waits, timeout=20.0))
        assert (lane["waiting"], lane["in_flight"], lane["replicas_up"]) == (1, 0, 0)
        assert lane["oldest_seconds"] >= 0.0
        assert omnibus("replicas", "resume", "speaker", nats=served.nats_url).stdout == "speaker.r0: up\n"
        assert waiting.wait() == 0
    done = omnibus("replicas", "restart", "speaker.r0", nats=served.nats_url, timeout=60.0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("leaves") == done.stdout.count(": up") == 1


def test_drained_replica_is_drained_when_its_process_was_killed_and_started_again(served: Serving) -> None:
    def replicas() -> list[dict[str, Any]]:
        words = ("replicas", "list", "--stage", "painter", "--json")
        return json.loads(omnibus(*words, nats=served.nats_url).stdout)  # type: ignore[no-any-return]

    async def next_life() -> dict[str, Any] | None:
        found = await asyncio.to_thread(replicas)
        return next((one for one in found if one["pid"] != before["pid"] and one["status"] in ("up", "draining")), None)

    for order, status in (("drain", "draining"), ("resume", "up")):
        (before,) = replicas()
        assert omnibus("replicas", order, "painter", nats=served.nats_url).returncode == 0
        os.kill(before["pid"], signal.SIGKILL)
        after = asyncio.run(eventually(next_life, timeout=30.0))
        assert (after["name"], after["status"]) == ("painter.r0", status)
    words = ("submit", "a circle", "-m", "image", "-o", str(served.log.parent / "out"))
    assert omnibus(*words, nats=served.nats_url).returncode == 0


def test_replica_that_is_drained_for_good_ends_and_is_not_started_again(served: Serving) -> None:
    assert omnibus("replicas", "drain", "speaker", "--end", nats=served.nats_url).stdout == "speaker.r0: ended\n"
    missing = omnibus("replicas", "drain", "speaker", nats=served.nats_url)
    assert missing.returncode == 1
    assert "of this stage there are: none" in missing.stderr


def test_bench_counts_what_its_callers_saw(served: Serving) -> None:
    done = omnibus(
        "bench", "a red circle", "--url", served.url, "-n", "6", "-c", "3", "-m", "text", "--json", nats=served.nats_url
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["done"], found["failed"]) == (6, 0)
    times = found["seconds"]
    assert 0 < times["first_token"]["p50"] <= times["answer"]["p50"] <= times["answer"]["max"]
    assert times["first_audio"] is None
    refused = omnibus("bench", "x", "--url", served.url, "-n", "1", "--model", "nobody", nats=served.nats_url)
    assert refused.returncode == 1
    assert "1 failed: 404" in refused.stderr
    assert omnibus("bench", "--url", "http://127.0.0.1:9", "-n", "1", nats=served.nats_url).returncode == 2


def test_top_is_live_on_a_terminal_and_ends_with_ctrl_c(served: Serving) -> None:
    with Terminal("top", "--every", "0.1", OMNIBUS_NATS_URL=served.nats_url) as top:
        top.read_until("taken/s")
        top.read_until("writer")
        top.interrupt()
        assert top.wait() == 130


def test_replicas_are_services_of_nats(served: Serving) -> None:
    async def answers(subject: str) -> list[dict[str, Any]]:
        client = await nats.connect(served.nats_url)
        try:
            inbox = await client.subscribe(box := client.new_inbox())
            await client.publish(subject, reply=box)
            first = await inbox.next_msg(10.0)
            rest = [message async for message in _arrived(inbox)]
            return [json.loads(message.data) for message in (first, *rest)]
        finally:
            await client.close()

    asked = omnibus("submit", "a red circle", "-m", "text", nats=served.nats_url, timeout=60.0)
    assert asked.returncode == 0, asked.stderr
    pings = [service.ServicePing.from_dict(one) for one in asyncio.run(answers("$SRV.PING"))]
    assert {one.name for one in pings} >= {"omni-simple-0", "omni-simple-1"}
    (info,) = asyncio.run(answers("$SRV.INFO.omni-simple-0"))
    assert service.ServiceInfo.from_dict(info).endpoints[0].subject == "omni.simple.task.0.interactive.*"
    (stats,) = asyncio.run(answers(f"$SRV.STATS.omni-simple-0.{info['id']}"))
    assert service.ServiceStats.from_dict(stats).endpoints[0].num_requests >= 1
    assert stats["metadata"]["stage"] == "writer"


async def _arrived(inbox: Any) -> Any:
    """What comes within a moment: answers of services have no end."""
    while True:
        try:
            yield await inbox.next_msg(0.3)
        except nats.errors.TimeoutError:
            return

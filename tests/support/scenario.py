"""omni-tiny as operators start it: a handful of commands, and answers that are graded."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.support.served import omnibus, start
from tools.omni_tiny import grading

PROMPTS = (
    "draw a red circle left of a blue square",
    "draw a green triangle above a red cross",
    "draw a blue square",
    "draw a yellow cross right of a green circle",
)
_GRADERS = {"image": grading.grade_image, "audio": grading.grade_audio, "video": grading.grade_video}
_ANSWER_TIMEOUT = 120.0


@contextmanager
def worker(stage: str, *, replicas: int = 1, nats: str, folder: Path) -> Iterator[None]:
    """`omnibus worker` for a stage of omni-tiny; at the end stopped as an operator stops it."""
    words = ("worker", "--pipeline", "omni-tiny", "--stage", stage, "--replicas", str(replicas), "--grace", "5")
    process = start(*words, nats=nats, log=folder / f"worker-{stage}.log")
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(45)
        finally:
            process.kill()
            process.wait()


def replicas_up(nats: str) -> dict[str, int]:
    """Replicas that are up, by stage; empty while there is no broker or no pipeline."""
    said = omnibus("status", "--pipeline", "omni-tiny", "--json", nats=nats, timeout=_ANSWER_TIMEOUT)
    if said.returncode != 0:
        return {}
    return {
        stage["name"]: sum(replica["status"] == "up" for replica in stage["replicas"])
        for stage in json.loads(said.stdout)["stages"]
    }


def wrong_answers(nats: str, modalities: str, folder: Path) -> Mapping[str, str]:
    """Send every prompt at the same time with `omnibus submit`; what is wrong with the answers, by prompt."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        grades = pool.map(lambda number: _wrong(nats, modalities, number, folder), range(len(PROMPTS)))
        return {prompt: grade for prompt, grade in zip(PROMPTS, grades, strict=True) if grade}


def _wrong(nats: str, modalities: str, number: int, folder: Path) -> str:
    prompt, out = PROMPTS[number], folder / f"answer-{number}"
    words = ("submit", prompt, "-p", "omni-tiny", "-m", modalities, "--json", "--seed", str(number), "-o", str(out))
    done = omnibus(*words, nats=nats, timeout=_ANSWER_TIMEOUT)
    if done.returncode != 0:
        return done.stderr
    outputs = json.loads(done.stdout)["outputs"]
    if sorted(output["modality"] for output in outputs) != sorted(modalities.split(",")):
        return f"came as {outputs}"
    grades = [_graded(prompt, output) for output in outputs]
    return "; ".join(grade.reason for grade in grades if not grade)


def _graded(prompt: str, output: Mapping[str, object]) -> grading.Grade:
    if output["modality"] == "text":
        return grading.grade_text(prompt, str(output["text"]))
    (file,) = output["files"]
    return _GRADERS[str(output["modality"])](prompt, Path(file).read_bytes())

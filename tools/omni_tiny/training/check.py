"""Grade omni-tiny's checkpoints without serving: `python -m tools.omni_tiny.training.check`.

The last line is one JSON object with the shares graded right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import omnibus.omni_tiny
from omnibus.pipeline.loading import load_pipeline
from tools.omni_tiny.grading import Grade, grade_audio, grade_image, grade_text
from tools.omni_tiny.grammar import held_out, parse, sample_prompts
from tools.omni_tiny.training.reference import Reference
from tools.omni_tiny.voice import SAMPLE_RATE

CHECKPOINTS = Path(omnibus.omni_tiny.__file__).parent / "checkpoints"
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Graded:
    """The grades on one sentence's answers."""

    prompt: str
    text: Grade
    image: Grade
    audio: Grade

    @property
    def all_right(self) -> bool:
        return self.text.ok and self.image.ok and self.audio.ok


def check(checkpoints: Path, prompts: Sequence[str], seed: int, **sampling: Any) -> list[Graded]:
    """Grade the answers to `prompts`; the picture of the n-th has seed + n.

    `sampling` overrides the dit's parameters in the pipeline file.
    """
    reference = Reference(checkpoints)
    sampling = {**default_sampling(), **sampling}
    with tqdm(total=len(prompts), desc="check") as progress:
        graded = []
        for one in _grade(reference, prompts, seed, sampling):
            graded.append(one)
            progress.update()
    return graded


def default_sampling() -> dict[str, Any]:
    """The dit's sampling parameters in the shipped pipeline file."""
    return load_pipeline("omni-tiny").stage("dit").default_sampling_params


def shares(graded: Sequence[Graded]) -> dict[str, float]:
    """Shares graded right, of all and of the held-out sentences."""
    hidden = [one for one in graded if parse(one.prompt) in held_out()]
    return {
        "prompts": len(graded),
        "text": _share([one.text.ok for one in graded]),
        "image": _share([one.image.ok for one in graded]),
        "audio": _share([one.audio.ok for one in graded]),
        "all": _share([one.all_right for one in graded]),
        "all_held_out": _share([one.all_right for one in hidden]),
    }


def _grade(reference: Reference, prompts: Sequence[str], seed: int, sampling: dict[str, Any]) -> Iterator[Graded]:
    for at in range(0, len(prompts), _TOGETHER):
        some = prompts[at : at + _TOGETHER]
        thoughts = [reference.think(prompt) for prompt in some]
        seeds = range(seed + at, seed + at + len(some))
        pictures = reference.draw([states for _, _, states in thoughts], seeds, **sampling)
        for prompt, (text, token_ids, _), picture in zip(some, thoughts, pictures, strict=True):
            sound = reference.speak(token_ids), SAMPLE_RATE
            yield Graded(prompt, grade_text(prompt, text), grade_image(prompt, picture), grade_audio(prompt, sound))


def _share(right: Sequence[bool]) -> float:
    return round(float(np.mean(right)), 4) if right else 1.0


def _main() -> None:
    parser = argparse.ArgumentParser(description="Grade omni-tiny's checkpoints without serving.")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--prompts", type=int, default=64, help="half of them of held-out scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the dit, instead of the pipeline file's")
    parser.add_argument("--guidance", type=float, help="of the dit, instead of the pipeline file's")
    args = parser.parse_args()
    given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    sampling = {name: value for name, value in given.items() if value is not None}
    graded = check(args.checkpoints, sample_prompts(args.prompts, args.seed), args.seed, **sampling)
    for one in graded:
        for kind in ("text", "image", "audio"):
            grade: Grade = getattr(one, kind)
            if not grade:
                print(f"{kind} wrong for {one.prompt!r}: {grade.reason}")
    print(json.dumps(shares(graded)))


if __name__ == "__main__":
    _main()

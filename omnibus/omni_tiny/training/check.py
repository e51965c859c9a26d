"""Judge omni-tiny's checkpoints without serving: `python -m omnibus.omni_tiny.training.check`.

The last line is one JSON object with the shares judged right.
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

from omnibus.omni_tiny.grammar import held_out, parse, sample_prompts
from omnibus.omni_tiny.judges import Verdict, judge_audio, judge_image, judge_text
from omnibus.omni_tiny.training.reference import Reference
from omnibus.omni_tiny.voice import SAMPLE_RATE
from omnibus.pipeline.loading import load_pipeline

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdicts on one sentence's answers."""

    prompt: str
    text: Verdict
    image: Verdict
    audio: Verdict

    @property
    def all_right(self) -> bool:
        return self.text.ok and self.image.ok and self.audio.ok


def check(checkpoints: Path, prompts: Sequence[str], seed: int, **sampling: Any) -> list[Judged]:
    """Judge the answers to `prompts`; the picture of the n-th has seed + n.

    `sampling` overrides the dit's parameters in the pipeline file.
    """
    reference = Reference(checkpoints)
    sampling = {**default_sampling(), **sampling}
    with tqdm(total=len(prompts), desc="check") as progress:
        judged = []
        for one in _judge(reference, prompts, seed, sampling):
            judged.append(one)
            progress.update()
    return judged


def default_sampling() -> dict[str, Any]:
    """The dit's sampling parameters in the shipped pipeline file."""
    return load_pipeline("omni-tiny").stage("dit").default_sampling_params


def shares(judged: Sequence[Judged]) -> dict[str, float]:
    """Shares judged right, of all and of the held-out sentences."""
    hidden = [one for one in judged if parse(one.prompt) in held_out()]
    return {
        "prompts": len(judged),
        "text": _share([one.text.ok for one in judged]),
        "image": _share([one.image.ok for one in judged]),
        "audio": _share([one.audio.ok for one in judged]),
        "all": _share([one.all_right for one in judged]),
        "all_held_out": _share([one.all_right for one in hidden]),
    }


def _judge(reference: Reference, prompts: Sequence[str], seed: int, sampling: dict[str, Any]) -> Iterator[Judged]:
    for at in range(0, len(prompts), _TOGETHER):
        some = prompts[at : at + _TOGETHER]
        thoughts = [reference.think(prompt) for prompt in some]
        seeds = range(seed + at, seed + at + len(some))
        pictures = reference.draw([states for _, _, states in thoughts], seeds, **sampling)
        for prompt, (text, token_ids, _), picture in zip(some, thoughts, pictures, strict=True):
            sound = reference.speak(token_ids), SAMPLE_RATE
            yield Judged(prompt, judge_text(prompt, text), judge_image(prompt, picture), judge_audio(prompt, sound))


def _share(right: Sequence[bool]) -> float:
    return round(float(np.mean(right)), 4) if right else 1.0


def _main() -> None:
    parser = argparse.ArgumentParser(description="Judge omni-tiny's checkpoints without serving.")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--prompts", type=int, default=64, help="half of them of held-out scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the dit, instead of the pipeline file's")
    parser.add_argument("--guidance", type=float, help="of the dit, instead of the pipeline file's")
    args = parser.parse_args()
    given = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    sampling = {name: value for name, value in given.items() if value is not None}
    judged = check(args.checkpoints, sample_prompts(args.prompts, args.seed), args.seed, **sampling)
    for one in judged:
        for kind in ("text", "image", "audio"):
            verdict: Verdict = getattr(one, kind)
            if not verdict:
                print(f"{kind} wrong for {one.prompt!r}: {verdict.reason}")
    print(json.dumps(shares(judged)))


if __name__ == "__main__":
    _main()

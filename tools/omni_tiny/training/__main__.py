"""Train all of omni-tiny: `python -m tools.omni_tiny.training [--out DIR]`.

Two parts are trained side by side, one core each; the dit comes after thinker and vae, which it is trained on. Every part has
its own seed. Last, the checkpoints are graded and described in a model card.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path

from tools.omni_tiny.training import card, parts

# glibc gives freed memory back and faults it in again at every step; keeping it halves the time of a step.
# Read by malloc when a process starts, so that this one starts itself once more.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967295",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
CHECK_PROMPTS = 512
CHECK_SEED = 1


def main() -> None:
    args = _arguments()
    if not ENVIRONMENT.items() <= os.environ.items():
        again = [sys.executable, "-m", "tools.omni_tiny.training", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **ENVIRONMENT})  # itself, with the arguments it has
    args.out.mkdir(parents=True, exist_ok=True)
    for part, trained in train_parts(args.out, args.only, args.jobs).items():
        card.note_training(args.out, part, trained)
    _check(args.out)


def train_parts(out: Path, chosen: Sequence[str], jobs: int) -> dict[str, parts.Trained]:
    """Train the chosen parts, `jobs` at a time, each as soon as what it needs is there."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures: dict[str, Future[parts.Trained]] = {}
        for part in (part for part in parts.ORDER if part in chosen):
            wait([futures[needed] for needed in parts.NEEDS.get(part, ()) if needed in futures])
            futures[part] = pool.submit(parts.train_part, part, out)
        return {part: future.result() for part, future in futures.items()}


def _check(out: Path) -> None:
    # Seconds of import, which the training's processes do not share.
    from tools.omni_tiny.grammar import sample_prompts  # noqa: PLC0415
    from tools.omni_tiny.training import check  # noqa: PLC0415

    shares = check.shares(check.check(out, sample_prompts(CHECK_PROMPTS, CHECK_SEED), CHECK_SEED))
    card.write_card(out, shares, CHECK_SEED, check.default_sampling())
    print(json.dumps(shares))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.omni_tiny.training", description="Train omni-tiny on CPU.")
    parser.add_argument("--out", type=Path, default=Path("out/omni-tiny"), help="folder for the checkpoints")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=parts.ORDER,
        default=parts.ORDER,
        help="parts to train; the others must be in the folder",
    )
    parser.add_argument("--jobs", type=int, default=2, help="parts trained at the same time, one core each")
    return parser.parse_args()


if __name__ == "__main__":
    main()

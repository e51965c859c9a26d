"""`make demo`: run `omnibus demo` and grade its answer: `python -m tools.demo [--out DIR] [PROMPT]`.

The last line is one JSON object, on a terminal a sentence. Exit code 0 only if text, image, audio and video are right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from omnibus.cli.demo import PROMPT
from tools.omni_tiny import grading
from tools.omni_tiny.grammar import UnparseableSentence, parse


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description="Run `omnibus demo` and grade its answer."
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for image, audio and video")
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="a sentence about coloured shapes")
    given, started = parser.parse_args(), time.monotonic()
    text, code = _run_demo(given.prompt, given.out)
    if code:
        return code
    image, audio = given.out / "image-dit.png", given.out / "audio-code2wav.wav"
    video = given.out / "video-clip.mp4"
    try:
        parse(given.prompt)
    except UnparseableSentence as error:
        print(f"not graded: {error}", file=sys.stderr)
        return 2
    grades = {
        "text": grading.grade_text(given.prompt, text),
        "image": grading.grade_image(given.prompt, image.read_bytes()),
        "audio": grading.grade_audio(given.prompt, audio.read_bytes()),
        "video": grading.grade_video(given.prompt, video.read_bytes()),
    }
    for modality, grade in grades.items():
        print(f"{modality}: right" if grade else f"{modality}: wrong, {grade.reason}", file=sys.stderr)
    right = {f"{modality}_ok": grade.ok for modality, grade in grades.items()}
    seconds = round(time.monotonic() - started, 1)
    files = {"image": str(image), "audio": str(audio), "video": str(video)}
    report = {"text": text.strip(), **files, **right, "seconds": seconds}
    print(_sentence(seconds) if sys.stdout.isatty() else json.dumps(report))
    return 0 if all(grades.values()) else 1


def _sentence(seconds: float) -> str:
    return f"done in {seconds:.0f} s; to go on: . .venv/bin/activate && omnibus serve omni-tiny"


def _run_demo(prompt: str, out: Path) -> tuple[str, int]:
    """Run the command, show its text as it comes, and return that text and the exit code."""
    command = [sys.executable, "-m", "omnibus.cli", "demo", "--out", str(out), prompt]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        text = ""
        try:
            while piece := demo.stdout.read(1):
                text += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # the terminal has interrupted the command too: it stops everything in order
            demo.wait()
        return text, demo.wait()


if __name__ == "__main__":
    sys.exit(main())

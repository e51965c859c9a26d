"""What a request brings, shown as it comes: text on stdout, progress on stderr, files in a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from omnibus.client.request_events import Output, OutputArrived, Result, StepProgress, TextPiece
from omnibus.errors import ConfigError
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.attempt import Attempt

EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "video/mp4": "mp4",
    "text/plain": "txt",
    "application/json": "json",
}


class Answer:
    """Shows the events of one request; a context manager, whose end takes the progress bar away."""

    def __init__(self, spec: PipelineSpec, folder: Path, *, quiet: bool = False) -> None:
        self._spec = spec
        self._folder = folder
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._rows: dict[int, TaskID] = {}
        self._open_line = False
        self._saved: dict[int, list[Path]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._end_line()

    def show(self, event: object) -> None:
        """Show one event; those that a terminal has no use for are passed over."""
        match event:
            case TextPiece():
                self._text(event)
            case StepProgress():
                self._step(event)
            case OutputArrived(output=output):
                self.keep(output)

    def keep(self, output: Output) -> None:
        """Save the files of an output, once; a text stays on the screen. Raises ConfigError where nothing can be written."""
        if output.stage_id in self._saved or output.modality == "text":
            return
        self._saved[output.stage_id] = paths = self._paths(output)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path, item in zip(paths, output.items, strict=True):
                path.write_bytes(item)
                self._say(f"{output.modality} saved as {path}")
        except OSError as error:
            raise ConfigError(f"{output.modality} cannot be saved under {self._folder}: {error.strerror}") from error

    def as_json(self, result: Result) -> dict[str, Any]:
        """What is left of a request, as one JSON object; its files are named, not included."""
        return describe(self._spec, result, self._saved)

    def _text(self, piece: TextPiece) -> None:
        if self._quiet or self._spec.stage(piece.stage_id).final_output_type != "text":
            return
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        self._open_line = True

    def _step(self, event: StepProgress) -> None:
        if event.stage_id not in self._rows:
            self._end_line()
            self._bar.start()
            self._stack.callback(self._bar.stop)
            name = self._spec.stage(event.stage_id).name
            self._rows[event.stage_id] = self._bar.add_task(name, total=event.total)
        self._bar.update(self._rows[event.stage_id], completed=event.step)

    def _paths(self, output: Output) -> list[Path]:
        stem = f"{output.modality}-{self._spec.stage(output.stage_id).name}"
        extension = EXTENSIONS.get(output.media_type, "bin")
        names = [f"{stem}.{extension}"]
        if len(output.items) != 1:
            names = [f"{stem}-{number}.{extension}" for number in range(len(output.items))]
        return [self._folder / name for name in names]

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._end_line()
            self._console.print(line, highlight=False, soft_wrap=True)

    def _end_line(self) -> None:
        if self._open_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._open_line = False


def describe(spec: PipelineSpec, result: Result, files: Mapping[int, Sequence[Path]] | None = None) -> dict[str, Any]:
    """A request as one JSON object: its state, its texts, the names of its files, and the time of each stage, seconds."""
    failure = result.failure
    return {
        "rid": result.rid,
        "state": str(result.state),
        "outputs": [
            _describe_output(spec, output, (files or {}).get(output.stage_id, ())) for output in result.outputs
        ],
        "failure": None if failure is None else {"code": failure.code, "message": failure.message},
        "stages": {
            spec.stage(timing.stage_id).name: {
                "queued": round(timing.started - timing.queued, 6),
                "running": round(timing.finished - timing.started, 6),
            }
            for timing in result.timings
        },
        "attempts": [describe_attempt(spec, attempt) for attempt in result.attempts],
    }


def describe_attempt(spec: PipelineSpec, attempt: Attempt) -> dict[str, Any]:
    """A failed attempt as one JSON object; a stage that the pipeline has no more is named by its number."""
    names = {stage.stage_id: stage.name for stage in spec.stages}
    return {
        "stage": names.get(attempt.stage_id, str(attempt.stage_id)),
        "run": attempt.run,
        "delivery": attempt.delivery,
        "at": round(attempt.at, 3),
        "replica": attempt.replica,
        "code": attempt.code,
        "message": attempt.message,
    }


def _describe_output(spec: PipelineSpec, output: Output, files: Sequence[Path]) -> dict[str, Any]:
    content = {"text": output.text} if output.modality == "text" else {"files": [str(path) for path in files]}
    return {
        "stage": spec.stage(output.stage_id).name,
        "modality": output.modality,
        "finish_reason": output.finish_reason,
        "bytes": sum(len(item) for item in output.items),
        **content,
    }

"""Outputs of a request, shown as they come: text on stdout, progress on stderr, files in a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from omnibus.cli.answer_screen import AnswerScreen
from omnibus.cli.tables import clock, make_table
from omnibus.client.request_events import Output, OutputArrived, Result, StepProgress, TextPiece
from omnibus.errors import ConfigError
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.failed_attempt import Attempt

_EXTENSIONS = {"jpeg": "jpg", "mpeg": "mp3", "plain": "txt"}
"""By the subtypes that are no extension themselves, as png, webp, wav, flac, mp4 and json are."""


class AnswerDisplay:
    """Shows the events of one request; `close` takes the progress bar away."""

    def __init__(self, spec: PipelineSpec, folder: Path, *, quiet: bool = False) -> None:
        self._spec, self._folder = spec, folder
        self._screen = AnswerScreen(quiet=quiet)
        self._saved: dict[tuple[int, str], list[Path]] = {}
        self.pieces: list[str] = []
        """The text that was shown."""

    def check_folder(self, modalities: Iterable[str]) -> None:
        """Raise ConfigError where files of these modalities could not be saved; nothing is made yet."""
        files = [modality for modality in modalities if modality != "text"]
        try:
            if files:
                folders = (self._folder, *self._folder.absolute().parents)
                tempfile.TemporaryFile(dir=next(folder for folder in folders if folder.exists())).close()
        except OSError as error:
            raise self._unsaved(files[0], error) from error

    def close(self) -> None:
        """Take the progress bar away, and end the line."""
        self._screen.close()

    def show(self, event: object) -> None:
        """Show one event; those that a terminal has no use for are passed over."""
        match event:
            case TextPiece(stage_id, text) if "text" in self._spec.stage(stage_id).final_types:
                self.pieces.append(text)
                self._screen.write(text)
            case StepProgress(stage_id, step, total):
                self._screen.progress(self._spec.stage(stage_id).name, step, total)
            case OutputArrived(output=output):
                self.keep(output)

    def keep(self, output: Output) -> None:
        """Save the files of an output, once; a text stays on the screen. Raises ConfigError where nothing can be written."""
        if output.modality == "text":
            self._screen.end_line()  # other lines come below it
            return
        if (output.stage_id, output.modality) in self._saved:
            return
        self._saved[output.stage_id, output.modality] = paths = self._paths(output)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path, item in zip(paths, output.items, strict=True):
                path.write_bytes(item)
        except OSError as error:
            raise self._unsaved(output.modality, error) from error
        for path in paths:
            self._screen.say(f"{output.modality} saved as {path}")

    def say(self, line: str) -> None:
        """A message on a line of its own."""
        self._screen.say(line)

    def as_json(self, result: Result) -> dict[str, Any]:
        """Describe a result as one JSON object; its files are named, not included."""
        return describe(self._spec, result, self._saved)

    def _unsaved(self, modality: str, error: OSError) -> ConfigError:
        return ConfigError(f"{modality} cannot be saved under {self._folder}: {error.strerror}")

    def _paths(self, output: Output) -> list[Path]:
        stem = f"{output.modality}-{self._spec.stage(output.stage_id).name}"
        subtype = output.media_type.rpartition("/")[2]
        extension = _EXTENSIONS.get(subtype, subtype if subtype.isalnum() else "bin")
        names = [f"{stem}.{extension}"]
        if len(output.items) != 1:
            names = [f"{stem}-{number}.{extension}" for number in range(len(output.items))]
        return [self._folder / name for name in names]


def describe(
    spec: PipelineSpec, result: Result, files: Mapping[tuple[int, str], Sequence[Path]] | None = None
) -> dict[str, Any]:
    """A request as one JSON object: its state, its texts, the names of its files, and the time of each stage, seconds."""
    failure = result.failure
    return {
        "request_id": result.rid,
        "state": str(result.state),
        "outputs": [
            _describe_output(spec, output, (files or {}).get((output.stage_id, output.modality), ()))
            for output in result.outputs
        ],
        "failure": None if failure is None else {"code": failure.code, "message": failure.message},
        "stages": {
            spec.stage_name(timing.stage_id): {
                name: round(seconds, 6) for name, seconds in zip(("queued", "running"), timing.seconds, strict=True)
            }
            for timing in result.timings
        },
        "attempts": [describe_attempt(spec, attempt) for attempt in result.attempts],
    }


def describe_attempt(spec: PipelineSpec, attempt: Attempt) -> dict[str, Any]:
    """A failed attempt as one JSON object; a stage that the pipeline has no more is named by its number."""
    facts = ("run", "delivery", "at", "replica", "code", "message", "where", "detail")
    return {
        "stage": spec.stage_name(attempt.stage_id),
        **{name: getattr(attempt, name) for name in facts},
        "at": round(attempt.at, 3),
    }


def attempts_table(attempts: Sequence[dict[str, Any]]) -> Table:
    """Failed attempts as `describe_attempt` describes them."""
    head = ("stage", "run", "delivery", "at", "replica", "code", "message", "where")
    rows = [[clock(one[key]) if key == "at" else one[key] for key in head] for one in attempts]
    return make_table(head, rows, title="failed attempts")


def _describe_output(spec: PipelineSpec, output: Output, files: Sequence[Path]) -> dict[str, Any]:
    content = {"text": output.text} if output.modality == "text" else {"files": [str(path) for path in files]}
    return {
        "stage": spec.stage(output.stage_id).name,
        "modality": output.modality,
        "finish_reason": output.finish_reason,
        "bytes": sum(len(item) for item in output.items),
        **content,
    }

"""Pipeline files on disk: those of the operator, and the shipped ones by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from omnibus.errors import PipelineError

_PACKAGE = Path(__file__).parents[1]
_PRESET_FOLDERS = (_PACKAGE / "_data" / "pipelines", _PACKAGE.parent / "deploy" / "pipelines")
"""Folders of the shipped pipelines: inside an installed wheel, and beside the package in a source tree."""
_SUFFIXES = (".yaml", ".yml")
_NO_TEXT = "not YAML: a binary file, or text that is not UTF-8"
MOST_CHARACTERS = 256 * 1024
"""Characters of a pipeline file."""


def pipeline_file(path_or_name: str | os.PathLike[str], *, beside: Path | None = None) -> Path:
    """Find the file of a path or name; a relative path starts in the folder `beside`, else in the working directory.

    A text with a folder separator or ending in .yaml or .yml is a path, anything else the name of a shipped pipeline.
    Raises PipelineError for an unknown name; a path need not exist.
    """
    text = os.fspath(path_or_name)
    if isinstance(path_or_name, os.PathLike) or is_path(text):
        return (beside or Path()) / Path(text).expanduser()
    return _preset(text)


def is_path(text: str) -> bool:
    """Tell a path from the name of a shipped pipeline."""
    return os.sep in text or text.endswith(_SUFFIXES)


def read_file(path: Path) -> str:
    """Read a pipeline file; raises PipelineError naming the file when it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:  # never more than a parser would take, of a device for instance
            text = file.read(MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise PipelineError(_NO_TEXT, file=str(path)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        is_model = path.suffix not in _SUFFIXES  # such as org/name, or a checkpoint's folder
        hint = "; a pipeline is a YAML file, and names the models of its stages" if is_model else ""
        raise PipelineError(f"cannot be read: {reason}{hint}", file=str(path)) from error
    if "\0" in text:
        raise PipelineError(_NO_TEXT, file=str(path))
    return text


def presets() -> dict[str, Path]:
    """List the shipped pipelines: name → file, sorted."""
    folder = next((folder for folder in _PRESET_FOLDERS if folder.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def suggestion(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that an unknown one looks like, as an end of an error message; empty without one."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _preset(name: str) -> Path:
    known = presets()
    if name not in known:
        listed = ", ".join(known) or "none"
        files = (f"{name}{suffix}" for suffix in _SUFFIXES)
        hint = next((f"; the file {file} is there" for file in files if Path(file).is_file()), suggestion(name, known))
        raise PipelineError(f"no pipeline named {name!r} is shipped{hint}; shipped are {listed}")
    return known[name]

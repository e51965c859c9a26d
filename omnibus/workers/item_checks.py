"""Whether what an engine yields is what it declares, before it leaves the worker.

A stage's own code may yield anything; what nobody could encode, read or show is the stage's fault, and the error has its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnibus.errors import EngineError, RequestError
from omnibus.wire.lazy_numpy import np
from omnibus.wire.payload import ROLE_MARK
from omnibus.workers.engines.protocol import SEGMENT_END, Chunk, Finished, Item, Progress, SegmentEnd, TextDelta

LARGEST = 2**63 - 1


def check_item(stage: str, kinds: Mapping[str, str], item: Item) -> None:
    """Raise EngineError, naming the stage, for an item that is not as the protocol has it; `kinds` are the declared outputs."""
    match item:
        case TextDelta():
            fault = _text_fault(item.text) or _tokens_fault(item.token_ids) or _fields_fault(item.fields)
        case Progress():
            whole = _is_count(item.step) and _is_count(item.total)
            fault = _preview_fault(item.preview) if whole else "progress counts whole steps"
        case SegmentEnd():
            fault = None
        case Chunk():
            fault = _chunk_fault(item) or _outputs_fault(kinds, item.outputs)
        case Finished():
            fault = _finished_fault(item) or _outputs_fault(kinds, item.outputs, *item.companions.values())
        case _:
            fault = f"a {type(item).__name__} is no item of an engine"
    if fault is not None:
        raise EngineError(f"stage {stage!r}: {fault}")


def _preview_fault(value: object) -> str | None:
    if value is None:
        return None
    from omnibus.media import pictures  # noqa: PLC0415 only stages with pictures load its libraries

    try:
        pictures.shown(value)  # type: ignore[arg-type]
    except RequestError as error:
        return f"a preview is a picture's file: {error.message}"
    return None


def _chunk_fault(item: Chunk) -> str | None:
    return _names_fault(item.outputs) or (None if item.outputs else "a chunk has at least one output")


def _names_fault(outputs: object) -> str | None:
    if not isinstance(outputs, Mapping) or not all(isinstance(name, str) for name in outputs):
        return "outputs are a mapping from names"
    if SEGMENT_END in outputs:
        return f"{SEGMENT_END!r} is no name for an output: yield SegmentEnd() where the answer to a segment ends"
    marked = any(ROLE_MARK in name for name in outputs)
    return f"the name of an output has no {ROLE_MARK!r}" if marked else None


def _finished_fault(item: Finished) -> str | None:
    fault = next(filter(None, map(_names_fault, (item.outputs, *item.companions.values()))), None)
    if fault is not None:
        return fault
    if _text_fault(item.finish_reason) is not None:
        return "finish_reason is a text"
    if (fault := _fields_fault(item.fields)) is not None:
        return fault
    counts = (item.usage.prompt_tokens, item.usage.completion_tokens)
    return None if all(map(_is_count, counts)) else "usage counts whole tokens"


def _fields_fault(fields: object) -> str | None:
    if not fields and isinstance(fields, Mapping):
        return None
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) and name for name in fields):
        return "fields are a mapping from names to texts"
    faults = ((name, _text_fault(text)) for name, text in fields.items())
    return next((f"field {name!r}: {fault}" for name, fault in faults if fault is not None), None)


def _outputs_fault(kinds: Mapping[str, str], *outputs: Mapping[str, Any]) -> str | None:
    for name, value in (pair for given in outputs for pair in given.items()):
        check = _FAULTS.get(kinds.get(name, ""))
        if check is not None and (fault := check(value)) is not None:
            return f"output {name!r}: {fault}"
    return None


def _text_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return f"a text is a str, not {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "a text holds half a surrogate pair, which is no UTF-8"
    return None


def _tokens_fault(value: object) -> str | None:
    if isinstance(value, list | tuple):
        # Two checks: numpy, which the second one loads, is for those that are no int.
        whole = all(isinstance(token, int) or isinstance(token, np.integer) for token in value)  # noqa: SIM101
    else:
        whole = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu"
    if whole:
        return None
    return f"tokens are a list of whole numbers, not {_shape_of(value)}"


def _tensor_fault(value: object) -> str | None:
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        # It may be on a GPU: it is copied once, when it is sent.
        kind = str(getattr(value, "dtype", ""))
        return f"a tensor is an array of numbers, not {kind}" if "complex" in kind else None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        return "a tensor's rows have one length"
    return None if array.dtype.kind in "fiub" else f"a tensor is an array of numbers, not {_shape_of(value)}"


def _shape_of(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST


_FAULTS = {"text": _text_fault, "tokens": _tokens_fault, "tensor": _tensor_fault}
"""The check of each kind: a fault, or None. Pictures, sound and JSON are checked where they are written."""

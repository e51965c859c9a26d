"""The whole of what a stage made in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnibus.wire import codec
from omnibus.wire.lazy_numpy import np
from omnibus.workers.engines.protocol import Chunk, Outputs

_AXES = {"audio": -1}
"""The axis of time of each kind of output, where that is not the first."""


def joined(chunks: Sequence[Chunk], kinds: Mapping[str, str]) -> Outputs:
    """The outputs that chunks make together: texts, arrays and lists follow each other; of anything else the last counts.

    Arrays follow each other along their first axis, those of an output of the kind audio along their last one, the frames.
    Raises ValueError for arrays whose shapes do not fit, TypeError for values of several kinds under one name.
    """
    names = dict.fromkeys(name for chunk in chunks for name in chunk.outputs)
    return {
        name: _joined(
            [chunk.outputs[name] for chunk in chunks if name in chunk.outputs], _AXES.get(kinds.get(name, ""), 0)
        )
        for name in names
    }


def _joined(values: Sequence[Any], axis: int) -> Any:
    match values[0]:
        case str():
            return "".join(values)
        case bytes():
            return b"".join(values)
        case first if hasattr(first, "__dlpack__"):  # numpy's arrays, and tensors
            arrays = [codec.host_array(value) for value in values]
            return np.concatenate(arrays, axis) if arrays[0].ndim else arrays[-1]
        case list() | tuple():
            return [item for value in values for item in value]
    return values[-1]

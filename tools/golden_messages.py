"""Golden messages: one of each kind that processes send each other or keep in the broker, as bytes of this tree's making.

    python -m tools.golden_messages          # writes tests/golden/<version>, where the present wire is not there yet

A folder is never changed once it was released: present code reads all of them, so that a fleet may be upgraded one process
after the other.
"""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from omnibus.batches.batch_record import BatchRecord
from omnibus.files.file_record import FileRecord
from omnibus.frontdoor.video_jobs.video_record import VideoRecord
from omnibus.registry.pause_state import PauseState
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.requests.record import DeadLetter, Record
from omnibus.wire import codec
from omnibus.wire.chunk import Chunks, FlowEnd, ReadPosition
from omnibus.wire.control import Announcement, Control, PromptTokens, RpcReply
from omnibus.wire.envelope import VERSION, Event, Task
from omnibus.wire.out import AskReceived, Out, Received
from omnibus.wire.request import Request, Segment

FOLDER = Path(__file__).parents[1] / "tests" / "golden"
UNIONS: tuple[Any, ...] = (Event, Control, Announcement, Out)
SINGLE: tuple[type[msgspec.Struct], ...] = (
    Task, RpcReply, PromptTokens, Chunks, FlowEnd, ReadPosition, AskReceived, Received, Request, Segment,
    Record, DeadLetter, ReplicaRecord, PauseState, BatchRecord, VideoRecord, FileRecord,
)  # fmt: skip
_DEPTH = 4
"""Structs within structs of their own kind are left out behind this depth."""


def kinds() -> dict[str, tuple[type[msgspec.Struct], Any]]:
    """Every kind of message by the name of its struct, with the type that receivers decode it as."""
    found: dict[str, tuple[type[msgspec.Struct], Any]] = {one.__name__: (one, one) for one in SINGLE}
    for union in UNIONS:
        found |= {one.__name__: (one, union) for one in union.__args__}
    return found


def sample(kind: Any, name: str = "", depth: int = 0) -> Any:
    """A value of a type with every field set, the same each time."""
    return _value(inspect.type_info(kind), name, depth)


def encoded() -> dict[str, bytes]:
    """The bytes of a sample of every kind."""
    return {name: codec.encode(sample(kind)) for name, (kind, _) in kinds().items()}


def plain(message: object) -> Any:
    """A message as JSON can hold it, bytes in base64."""
    return msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(message, str_keys=True, enc_hook=_plain_value)))


def _plain_value(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    raise TypeError(f"no message holds a {type(value).__name__}")


def _value(info: inspect.Type, name: str, depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912 a row a type
    match info:
        case inspect.StructType(cls=cls, fields=fields):
            given = {one.name: _value(one.type, one.name, depth + 1) for one in fields if _is_set(one, depth)}
            return cls(**given)
        case inspect.UnionType(types=types):
            known = [one for one in types if not isinstance(one, inspect.NoneType)]
            return _value(known[0], name, depth)
        case inspect.EnumType(cls=cls):
            return list(cls)[-1]
        case inspect.LiteralType(values=values):
            return values[-1]
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return 3
        case inspect.FloatType():
            return 1.5
        case inspect.StrType():
            return name or "text"
        case inspect.BytesType():
            return b"\x00\x01golden"
        case inspect.DictType(key_type=key, value_type=value):
            return {_value(key, "key", depth): _value(value, name, depth)}
        case inspect.TupleType(item_types=items):
            return tuple(_value(one, name, depth) for one in items)
        case inspect.VarTupleType(item_type=item):
            return (_value(item, name, depth),)
        case inspect.ListType(item_type=item):
            return [_value(item, name, depth)]
        case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
            return frozenset([_value(item, name, depth)])
        case inspect.NoneType():
            return None
        case inspect.AnyType():
            return "any"
    raise TypeError(f"{name}: nothing here makes a sample of {info}")


def _is_set(one: inspect.Field, depth: int) -> bool:
    """Versions keep their defaults, and what holds itself ends somewhere."""
    has_default = one.default is not msgspec.NODEFAULT or one.default_factory is not msgspec.NODEFAULT
    return not has_default or (one.name != "v" and depth < _DEPTH)


def released() -> list[Path]:
    """The folders that there are, the oldest first."""
    return sorted(
        (one for one in FOLDER.iterdir() if one.is_dir()), key=lambda one: tuple(map(int, one.name[1:].split(".")))
    )


def write() -> Path | None:
    """Record the present messages; None where they are recorded already.

    Kinds that are new join the newest folder. Where bytes of a kind have changed, or one is gone, all go into a folder.
    """
    present, before = encoded(), released()
    known = read(before[-1]) if before else {}
    if present == known:
        return None
    same = [one for one in before if one.name.split(".")[0] == f"v{VERSION}"]
    is_whole = same and all(present.get(name) == data for name, data in known.items())
    folder = before[-1] if is_whole else FOLDER / f"v{VERSION}.{len(same)}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in present.keys() - known.keys() if is_whole else present:
        (folder / f"{name}.msgpack").write_bytes(present[name])
        text = msgspec.json.encode(plain(codec.decode(present[name], kinds()[name][1])))
        (folder / f"{name}.json").write_bytes(msgspec.json.format(text, indent=1) + b"\n")
    return folder


def read(folder: Path) -> Mapping[str, bytes]:
    """The messages of a folder, by the names of their structs."""
    return {one.stem: one.read_bytes() for one in folder.glob("*.msgpack")}


if __name__ == "__main__":
    made = write()
    sys.stdout.write("the present wire is recorded already\n" if made is None else f"recorded in {made}\n")

"""The AsyncAPI document of the wire names every subject and every message, and only roles that may send or hear them."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest

from omnibus.broker.roles import NatsRole, permissions
from omnibus.pipeline.loading import load_pipeline, parse_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import control, envelope, out, stores, subjects
from omnibus.wire.chunk import Chunks
from omnibus.wire.payload import Payload
from tools.site.asyncapi import document, field_notes
from tools.site.channels import CHANNELS, PARAMETERS, Channel

pytestmark = pytest.mark.unit

NO_CHANNELS = {
    # Filters: of channels that are named.
    "all_tasks_filter", "chunk_subjects", "claims", "events_filter", "flows_filter", "out_all", "purge_filter",
    "requests_filter", "tasks_filter", "timers_filter", "work_subjects",
    # Ids of messages, and keys beside others.
    "message_id", "attempt_id", "pause_key", "drain_key",
    # What takes a subject apart.
    "chunk_rid", "is_out", "parse_event", "parse_rid", "parse_task", "shared_lane_of",
    # A case of `event`.
    "deadline_event",
    # Names in NATS' own protocol of services.
    "service", "service_questions",
}  # fmt: skip
"""Functions of `wire/subjects.py`, and makers of keys in `wire/stores.py`, that make no channel of their own."""
DIRECT = """
name: omni-tiny
stages:
- {stage_id: 0, name: first, engine: sim}
- {stage_id: 1, name: last, engine: sim, input_sources: [0], final_output: true, final_output_type: text}
edges: [{source: 0, target: 1, forwarding: direct}]
"""
SPECS = (msgspec.structs.replace(load_pipeline("omni-tiny"), input_timeout=60.0), parse_pipeline(DIRECT))
"""Pipelines that make use of every channel: with flows, an open input, and an end that a worker writes."""


def _functions_of(module: ModuleType) -> list[str]:
    return [
        name
        for name, member in vars(module).items()
        if inspect.isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_")
    ]


def test_every_subject_is_a_channel() -> None:
    """A new function there, or maker of keys, needs a channel in `tools/site/channels.py`, or a line above."""
    source = inspect.getsource(inspect.getmodule(Channel))  # type: ignore[arg-type]
    made = set(re.findall(r"subjects\.(\w+)\(|stores\.(\w+_key)\(", source))
    made = {subject or key for subject, key in made} - NO_CHANNELS
    functions = set(_functions_of(subjects)) | {name for name in _functions_of(stores) if name.endswith("_key")}
    assert functions == made | NO_CHANNELS


@pytest.mark.parametrize(
    ("channels", "union"),
    [
        (("out",), out.Out), (("event",), envelope.Event), (("claim",), control.Announcement),
        (("control", "controlAll", "ask", "askAll"), control.Control), (("flow",), Chunks), (("task",), envelope.Task),
    ],
    ids=str,
)  # fmt: skip
def test_every_message_is_in_its_channel(channels: tuple[str, ...], union: Any) -> None:
    stated = {kind for channel in CHANNELS if channel.name in channels for kind in channel.messages}
    assert set(get_args(union) or (union,)) == {kind for kind in stated if isinstance(kind, type)}


def _sides() -> list[tuple[Channel, str, str]]:
    sides = [(channel, "publish", role) for channel in CHANNELS for role in channel.senders]
    heard = [(channel, "subscribe", role) for channel in CHANNELS if not channel.kept for role in channel.receivers]
    return [side for side in sides + heard if side[2] in set(NatsRole)]


@pytest.mark.parametrize(("channel", "action", "role"), _sides(), ids=lambda one: getattr(one, "name", one))
def test_role_may_do_what_the_document_says(channel: Channel, action: str, role: str) -> None:
    rights = [right for spec in SPECS for right in _rights(spec, action, NatsRole(role), channel)]
    assert any(_covers(right, subject) for right in rights for subject in _examples(channel)), channel.address


def _rights(spec: PipelineSpec, action: str, role: NatsRole, channel: Channel) -> tuple[str, ...]:
    if channel.name == "disconnects":  # orchestrators hear them with credentials of their own
        role = NatsRole.DISCONNECTS
    stages = [stage.stage_id for stage in spec.stages]
    allowed = permissions(role, spec, stages=stages, token="token", inbox="_INBOX")
    return allowed.publish if action == "publish" else allowed.subscribe


def _examples(channel: Channel) -> list[str]:
    """The channel's address with names of a request to omni-tiny, for every stage and kind of event."""
    names = {
        "pipeline": "omni-tiny", "rid": "r", "lane": "interactive", "replica": "a", "host": "h", "token": "token",
        "nonce": "n", "run": "1", "account": "OMNI", "id": "i", "reader": "2",
    }  # fmt: skip
    assert names.keys() | {"stage", "kind"} == PARAMETERS.keys()
    address = channel.address.format_map({**names, "stage": "{stage}", "kind": "{kind}"})
    stages = [*(str(stage.stage_id) for stage in SPECS[0].stages), subjects.INPUT]
    return [address.format(stage=stage, kind=kind) for stage in stages for kind in ("result", "attempt")]


def _covers(right: str, subject: str) -> bool:
    wanted, given = subject.split("."), right.split(".")
    if given[-1] == ">":
        wanted, given = wanted[: len(given) - 1], given[:-1]
    return len(wanted) == len(given) and all(one in ("*", token) for one, token in zip(given, wanted, strict=True))


def test_fields_are_described_by_the_strings_beneath_them() -> None:
    schema = document()["components"]["schemas"]["Payload"]
    assert schema["properties"]["locations"]["description"] == field_notes(Payload)["locations"]
    assert schema["properties"].keys() == set(Payload.__struct_fields__)

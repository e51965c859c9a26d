"""A cluster that is not whole when something is made on it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from omnibus.broker.connection import connect
from omnibus.broker.layout import Layout, Stream, ensure_layout
from omnibus.errors import BrokerUnavailable
from tests.support.three_nodes import NODES, ThreeNodes


async def test_stream_of_three_copies_is_made_once_the_third_node_has_come(tmp_path: Path) -> None:
    wanted = Stream("copied", {"name": "copied", "subjects": ["copied"], "num_replicas": 3})
    nodes = ThreeNodes(tmp_path)
    try:
        await nodes.start_node(1)
        await nodes.start_node(2)
        async with connect(nodes.url, name="test", deadline=30.0) as connection:
            await ensure_layout(connection, Layout((Stream("any", {"name": "any", "subjects": ["any"]}),), ()))
            with pytest.raises(BrokerUnavailable, match="fewer nodes of the cluster are up than copies"):
                await connection.api(wanted.operation("CREATE"), wanted.config, deadline=2.0)
            await nodes.start_node(3)
            changes = await ensure_layout(connection, Layout((wanted,), ()))
            assert [change.action for change in changes] == ["create"]
    finally:
        await nodes.kill()


async def test_message_that_is_sent_again_while_the_cluster_still_stores_it_is_stored_once(tmp_path: Path) -> None:
    stream = Stream("copied", {"name": "copied", "subjects": ["copied"], "num_replicas": 3})
    async with ThreeNodes(tmp_path) as nodes, connect(nodes.url, name="test", deadline=30.0) as any_node:
        await ensure_layout(any_node, Layout((stream,), ()))
        leader = await nodes.leader_of(any_node, "copied")
        others = [nodes.pid(node) for node in NODES if node != leader]
        async with connect(nodes.url_of(leader), name="test") as connection:
            await connection.js_publish("copied", b"before", "before")
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            try:
                sent = connection.js_publish("copied", b"again", "again", deadline=20.0)
                said = await connection.request("copied", b"again", headers={"Nats-Msg-Id": "again"})
            finally:
                for pid in others:
                    os.kill(pid, signal.SIGCONT)
            assert b"10158" in said.data  # else this shows nothing: the server had stored it already
            await sent
            info = await connection.api("STREAM.INFO.copied")
    assert info["state"]["messages"] == 2

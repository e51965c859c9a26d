"""A cluster that is not whole when something is made on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnibus.broker.connection import connect
from omnibus.broker.layout import Layout, Stream, ensure_layout
from omnibus.errors import BrokerUnavailable
from tests.support.three_nodes import ThreeNodes


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

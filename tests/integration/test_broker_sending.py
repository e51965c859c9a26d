"""Messages leave joined with others, in order, and whole: also at a close, at a break, and when the buffer is full."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

import omnibus.broker.subscription
from omnibus.broker.connection import Connection, ReceivedMessage, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.errors import BrokerRefused, BrokerUnavailable
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def test_messages_are_in_order_when_they_differ_in_size_and_wait_for_each_other(
    nats_server: EmbeddedServer, connection: Connection
) -> None:
    received: list[int] = []
    async with connect(nats_server.url, name="sender", role="test") as sender:
        await connection.subscribe("order.*", lambda message: received.append(len(message.data)))
        sizes = [number * 997 % 100_000 for number in range(400)]
        busy = [asyncio.create_task(sender.request("$SYS.REQ.USER.INFO")) for _ in range(20)]
        for size in sizes:
            await sender.publish("order.x", bytes(size))
            if size % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*busy)
        await sender.flush()
        await connection.flush()
    assert received == sizes


@pytest.mark.parametrize("is_busy", [False, True])
async def test_message_leaves_when_its_connection_is_closed_at_once(
    nats_server: EmbeddedServer, connection: Connection, is_busy: bool
) -> None:
    received: list[bytes] = []
    await connection.subscribe("last.word", lambda message: received.append(message.data))
    async with connect(nats_server.url, name="leaving", role="test") as leaving:
        asks = [leaving.ask("$SYS.REQ.USER.INFO") for _ in range(20 * is_busy)]
        leaving.send("last.word", b"first")
        leaving.send("last.word", b"second")
    await asyncio.gather(*asks, return_exceptions=True)
    await eventually(lambda: received == [b"first", b"second"])


async def test_kept_messages_follow_in_order_when_the_connection_is_back(own_server: EmbeddedServer) -> None:
    received: list[bytes] = []
    async with connect(own_server.url, name="a", role="test") as sender:
        await sender.subscribe("kept", lambda message: received.append(message.data))
        await own_server.kill()
        await eventually(lambda: not sender.connected)
        kept = [b"%d" % number for number in range(50)]
        for body in kept[:-1]:
            sender.send("kept", body)
        sender.send("kept", bytes(7 << 20))
        sender.send("kept", bytes(7 << 20))
        with pytest.raises(BrokerUnavailable, match="cannot publish"):
            sender.send("kept", bytes(7 << 20))  # beyond what is kept
        sender.send("kept", kept[-1])
        await own_server.start()
        await eventually(lambda: [body for body in received if len(body) < 10] == kept, 10)


async def test_kept_messages_follow_when_the_new_connection_breaks_while_they_are_sent(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[bytes] = []
    async with connect(own_server.url, name="a", role="test") as sender:
        await sender.subscribe("kept", lambda message: received.append(message.data[:2]))
        await own_server.kill()
        await eventually(lambda: not sender.connected)
        kept = [b"%02d" % number for number in range(30)]
        for number, body in enumerate(kept):
            sender.send("kept", body + bytes(100_000 * (number % 3)))
        client, writes = sender.client, []
        write = client._write

        def breaks_at_the_third() -> None:
            write()
            writes.append(len(client._batch))
            if len(writes) == 3:
                client._tcp.out.abort()

        monkeypatch.setattr(client, "_write", breaks_at_the_third)
        await own_server.start()
        await eventually(lambda: received[-20:] == kept[-20:], 20)
        assert received == kept[-len(received) :], "each once and in order, but for what the broken one had taken"


async def test_publisher_waits_for_room_when_nobody_reads(nats_server: EmbeddedServer) -> None:
    async with Proxy(nats_server.url) as proxy, connect(proxy.url, name="flood", role="test") as flood:
        piece = bytes(flood.max_payload)

        async def publish() -> None:
            for _ in range(12):
                await flood.publish("flood", piece)

        proxy.black_hole()
        publishing = asyncio.create_task(publish())
        await eventually(lambda: flood.client.is_full)
        with suppress(BrokerUnavailable):
            for _ in range(12):
                flood.send("flood", piece)
        with pytest.raises(BrokerUnavailable, match="cannot publish"):
            flood.send("flood", piece)
        assert not publishing.done()
        publishing.cancel()
        await asyncio.wait({publishing})
        assert publishing.cancelled()


async def test_connection_is_given_up_when_its_server_takes_nothing_and_the_buffer_is_full(
    nats_server: EmbeddedServer,
) -> None:
    async with Proxy(nats_server.url) as proxy, connect(proxy.url, name="flood", role="test") as flood:
        flood.client.options["ping_interval"] = 0.2
        proxy.black_hole()
        with suppress(BrokerUnavailable):
            for _ in range(100):
                flood.send("flood", bytes(flood.max_payload))
        with pytest.raises(BrokerUnavailable, match="cannot publish"):
            flood.send("flood", bytes(flood.max_payload))
        reading = flood.client._reading_task
        await flood.client._process_ping()  # as nats-py does while it reads: to raise would end its task
        subscription = asyncio.create_task(flood.subscribe("any", lambda _: None))
        await eventually(lambda: flood.connected_since is None, 15)
        assert reading.done()
        proxy.heal()
        await eventually(lambda: flood.connected, 15)
        await asyncio.wait({subscription})
        assert isinstance(subscription.exception(), BrokerUnavailable)
        assert await flood.api("INFO")


async def test_message_is_refused_when_its_headers_make_it_too_large(connection: Connection) -> None:
    with pytest.raises(BrokerRefused, match="exceeds"):
        await connection.publish("large", bytes(connection.max_payload - 10), headers={"A": "x" * 20})
    assert await connection.api("INFO"), "the connection lives"


@pytest.mark.parametrize("subject", ["", "two words", "line\r\nend", "tab\tbed"])
async def test_subject_is_refused_when_it_would_break_the_protocol(connection: Connection, subject: str) -> None:
    with pytest.raises(BrokerRefused, match="malformed"):
        await connection.publish(subject)
    with pytest.raises(BrokerRefused, match="malformed"):
        await connection.publish("fine", reply=f"{subject} ")
    with pytest.raises(BrokerRefused, match="malformed"):
        await connection.request("fine", headers={f"{subject} ": "x"})


async def test_listener_goes_on_when_a_callback_raises(connection: Connection) -> None:
    received: list[bytes] = []

    def listen(message: ReceivedMessage) -> None:
        received.append(message.data)
        raise ValueError("a fault of the callback's")

    await connection.subscribe("raising", listen)
    for body in (b"1", b"2"):
        await connection.publish("raising", body)
    await connection.flush()
    assert received == [b"1", b"2"]
    assert connection.metrics.errors.labels("subscription")._value.get() == 2


async def test_coroutine_gets_messages_one_after_the_other_and_all_before_a_drain_ends(connection: Connection) -> None:
    done: list[bytes] = []

    async def work(message: ReceivedMessage) -> None:
        await asyncio.sleep(0.01 if message.data == b"0" else 0)
        done.append(message.data)

    subscription = await connection.subscribe("slow", work)
    bodies = [b"%d" % number for number in range(20)]
    for body in bodies:
        await connection.publish("slow", body)
    await subscription.drain()
    await connection.publish("slow", b"too late")
    await connection.flush()
    assert done == bodies


async def test_messages_beyond_a_bound_in_bytes_are_dropped_and_counted_when_a_coroutine_is_slow(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omnibus.broker.subscription, "MOST_BYTES", 25)
    goes_on, done = asyncio.Event(), list[bytes]()

    async def work(message: ReceivedMessage) -> None:
        await goes_on.wait()
        done.append(message.data)

    subscription = await connection.subscribe("heavy", work)
    bodies = [b"%010d" % number for number in range(6)]
    for body in bodies[:5]:
        await connection.publish("heavy", body)
        await connection.flush()  # so that the first is in hand, and does not wait
    goes_on.set()
    await eventually(lambda: len(done) == 3)
    await connection.publish("heavy", bodies[5])
    await subscription.drain()
    assert done == [*bodies[:3], bodies[5]], "there is room again for what comes later"
    assert connection.metrics.errors.labels("subscription")._value.get() == 2


async def test_flush_fails_at_once_when_the_connection_breaks_and_the_next_waits_until_it_is_back(
    nats_server: EmbeddedServer,
) -> None:
    async with Proxy(nats_server.url) as proxy, connect(proxy.url, name="a", role="test") as connection:
        proxy.black_hole()
        flushing = asyncio.create_task(connection.flush(60.0))
        await eventually(lambda: bool(connection.client._pongs))
        proxy.drop()
        proxy.heal()
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(flushing, 10.0)
        await connection.flush(10.0)
        assert connection.connected


async def test_requests_time_out_each_at_its_own_moment(connection: Connection) -> None:
    async def silent(_message: ReceivedMessage) -> None: ...

    await connection.subscribe("silent", silent)
    loop, ends = asyncio.get_running_loop(), dict[float, float]()

    async def ask(timeout: float) -> None:
        began = loop.time()
        with pytest.raises(BrokerUnavailable, match=f"within {timeout:g} s"):
            await connection.request("silent", timeout=timeout)
        ends[timeout] = loop.time() - began

    await asyncio.gather(*(ask(timeout) for timeout in (0.6, 0.1, 0.3)))
    assert list(ends) == [0.1, 0.3, 0.6]
    assert all(timeout - 0.01 <= took < timeout + 2.0 for timeout, took in ends.items())
    assert not connection._replies.waiting


async def test_every_way_to_send_says_unavailable_when_its_socket_is_closing(nats_server: EmbeddedServer) -> None:
    async with connect(nats_server.url, name="sender", role="test") as sender:
        sender.client._tcp.out.abort()  # the loop has not been told of the end yet
        with pytest.raises(BrokerUnavailable):
            sender.send("somewhere")
        with pytest.raises(BrokerUnavailable):
            await sender.request("somewhere")
        with pytest.raises(BrokerUnavailable):
            await anext(sender.request_many("somewhere", b""))

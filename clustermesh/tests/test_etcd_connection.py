from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from clustermesh.etcd import UnreachableError, rpc_pb2
from clustermesh.etcd.config import Endpoint
from clustermesh.etcd.connection import Connection


@pytest.fixture
def silent() -> Iterator[Endpoint]:
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Endpoint("127.0.0.1", listener.getsockname()[1], tls=False)


@pytest.mark.parametrize("turns", [0, 1, 100])
async def test_a_stream_that_is_retired_before_it_is_connected_keeps_nobody_waiting(
    silent: Endpoint, turns: int
) -> None:
    connection = Connection(silent, None)
    stream = connection.stream("/etcdserverpb.Watch/Watch", rpc_pb2.WatchRequest, rpc_pb2.Event)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(expect_unreachable(stream.write(rpc_pb2.WatchRequest())))
        for _ in range(turns):
            await asyncio.sleep(0)
        await connection.retire("the certificates have changed")
    assert "the certificates have changed" in writing.result()


async def test_a_write_to_a_stream_that_has_ended_says_why(silent: Endpoint) -> None:
    connection = Connection(silent, None)
    stream = connection.stream("/etcdserverpb.Watch/Watch", rpc_pb2.WatchRequest, rpc_pb2.Event)
    await connection.retire("the certificates have changed")
    said = await expect_unreachable(stream.write(rpc_pb2.WatchRequest()))
    assert "the certificates have changed" in said


async def expect_unreachable(doing: object) -> str:
    assert asyncio.iscoroutine(doing)
    with pytest.raises(UnreachableError) as raised:
        await doing
    return str(raised.value)

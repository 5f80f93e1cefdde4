"""
Running a command in a container: the client's half of the protocol, over a real WebSocket.

The server speaks as an API server does to `kubectl exec`; a real one needs a kubelet behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from clustermesh.cli.contexts.pods import Pod, status_of, table_of
from clustermesh.kube import DeniedError, Kube, KubeConfig, KubeError, NotFoundError
from clustermesh.kube.credentials import Given

SUCCESS = b'\x03{"status":"Success"}'
FAILURE = b'\x03{"status":"Failure","message":"command terminated with non-zero exit code"}'


@asynccontextmanager
async def answering(*frames: bytes, asked: list[str], stays: bool = False) -> AsyncIterator[Kube]:
    """
    An API server in which every command prints `frames`; each is noted in `asked`.

    Args:
        stays: the command does not end before its client leaves.
    """

    async def run(request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != "Bearer it":
            raise web.HTTPForbidden
        asked.append(" ".join([request.match_info["pod"], *request.query.getall("command")]))
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        assert socket.ws_protocol == "v4.channel.k8s.io"
        for frame in frames:
            await socket.send_bytes(frame)
        if stays:
            await socket.receive()
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/api/v1/namespaces/mesh/pods/{pod}/exec", run)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        config = KubeConfig("test", f"http://{host}:{port}", "mesh", Given(token=b"it"))
        async with Kube(config) as kube:
            yield kube
    finally:
        await runner.cleanup()


async def test_what_is_printed_is_put_together() -> None:
    asked: list[str] = []
    frames = (b"\x01", b"\x01one ", b"\x02noise", b"\x01two", SUCCESS)
    async with answering(*frames, asked=asked) as kube:
        assert await kube.run("mesh", "pod1", "agent", "show", "it") == b"one two"
    assert asked == ["pod1 show it"]


async def test_a_command_that_says_something_and_fails_has_answered() -> None:
    async with answering(b"\x01not well", FAILURE, asked=[]) as kube:
        assert await kube.run("mesh", "pod1", "agent", "status") == b"not well"


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        ((b"\x02no such file", FAILURE), "run status in mesh/pod1: no such file"),
        ((FAILURE,), "run status in mesh/pod1: command terminated with non-zero exit code"),
        ((), "run status in mesh/pod1: it broke off"),
    ],
)
async def test_a_command_that_fails_is_an_error_with_its_cause(
    frames: tuple[bytes, ...], cause: str
) -> None:
    async with answering(*frames, asked=[]) as kube:
        with pytest.raises(KubeError, match=cause):
            await kube.run("mesh", "pod1", "agent", "status")


async def test_a_command_that_does_not_end_is_given_up() -> None:
    async with answering(b"\x01not yet", asked=[], stays=True) as kube:
        with pytest.raises(KubeError, match=r"run status in mesh/pod1: no end within 0\.1 s"):
            await kube.run("mesh", "pod1", "agent", "status", timeout=0.1)


async def test_a_pod_that_is_gone_is_named() -> None:
    async with answering(asked=[]) as kube:
        with pytest.raises(NotFoundError, match=r"run status in other/pod1: 404 .* no such pod"):
            await kube.run("other", "pod1", "agent", "status")


async def test_who_may_not_is_told() -> None:
    async with answering(asked=[]) as known:
        config = known.config
        nobody = KubeConfig(config.where, config.server, config.namespace, Given())
        async with Kube(nobody) as kube:
            with pytest.raises(DeniedError, match="run status in mesh/pod1: 403"):
                await kube.run("mesh", "pod1", "agent", "status")


def agent_pod() -> Pod:
    fields: Mapping[str, object] = {
        "metadata": {"name": "agent-x", "namespace": "mesh"},
        "spec": {"containers": [{"name": "agent", "args": ["--listen=127.0.0.1:9879"]}]},
        "status": {"phase": "Running"},
    }
    return msgspec.convert(fields, Pod)


async def test_an_agent_on_loopback_is_asked_from_within() -> None:
    asked: list[str] = []
    said = b'\x01{"agent": {"daemon": "agent", "version": "1", "ready": true}, "troubles": []}'
    async with answering(said, SUCCESS, asked=asked) as kube:
        status = await status_of(kube, agent_pod(), "agent")
        assert (status.daemon, status.ready) == ("agent", True)
        await table_of(kube, agent_pod(), "agent", "nodes")
    assert asked == [
        "agent-x clustermesh status --apiserver=none --output=json",
        "agent-x clustermesh show nodes --output=json",
    ]

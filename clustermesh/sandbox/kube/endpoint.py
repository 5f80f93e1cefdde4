"""
What the kubelets of a cluster answer its API server: `kubectl exec`, and `kubectl logs`.

An API server hands the WebSocket of a client on as it is: one of version 4 always, and one of
version 5, as kubectl has it, to Nodes that declare `ExtendWebSocketsToKubelet` (Kubernetes 1.36).
Each message is a byte that names a stream, and some of it: 0 is the command's standard input, 1 and
2 are its outputs, 3 says how it ended; 255 comes with version 5, and closes the stream named next.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from clustermesh.sandbox import process
from clustermesh.sandbox.daemons import Part, World
from clustermesh.sandbox.model import Cluster
from clustermesh.sandbox.namespace import run_inside
from clustermesh.sandbox.remains import cgroup_mount

from .control_plane import ADMINISTRATORS, ControlPlane

PORT: Final = 10250  # where an API server looks for a kubelet

_PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _OUTCOME, _CLOSE = 0, 1, 2, 3, 255
_CHUNK: Final = 1 << 16  # bytes


@asynccontextmanager
async def serve(world: World, cluster: Cluster) -> AsyncIterator[None]:
    """Answer at the address of every node of a cluster while the context is open."""
    runner = web.AppRunner(Endpoint(world, cluster).application(), access_log=None)
    await runner.setup()
    tls = _tls(world.plane(cluster))
    try:
        for node in cluster.nodes:
            listen = partial(socket.create_server, (str(node.addresses.v4), PORT))
            listening = run_inside(world.sandbox.namespace(node), listen)
            await web.SockSite(runner, listening, ssl_context=tls).start()
        yield
    finally:
        await runner.cleanup()


def _tls(plane: ControlPlane) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(plane.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*plane.kubelet)
    return context


class Endpoint:
    """The handlers. Whoever may call them is root in the sandbox: administrators are let in."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self._world = world
        parts = (part for part in world.parts() if part.place.cluster == cluster.name)
        # A pod of the sandbox has one container for each of its programs, called the same.
        self._parts = {(*world.pod_of(part.place), part.program): part for part in parts}

    def application(self) -> web.Application:
        """The paths of a kubelet that an API server asks for."""
        application = web.Application(middlewares=[_administrators_only])
        container = "{namespace}/{pod}/{container}"
        application.router.add_get(f"/exec/{container}", self._exec)
        application.router.add_get(f"/containerLogs/{container}", self._logs)
        return application

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        part = self._part(request)
        if part.process is None:
            raise web.HTTPInternalServerError(text="the container is not running")
        channels = web.WebSocketResponse(protocols=_PROTOCOLS)
        await channels.prepare(request)
        sandbox, place = self._world.sandbox, part.place
        words = process.inside(
            sandbox.namespace(place),
            cgroup_mount() / sandbox.cgroup_of(place),
            request.query.getall("command"),
        )
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        running = await asyncio.create_subprocess_exec(
            *words,
            stdin=pipe if request.query.get("input") else nothing,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **self._world.environment(place)},
        )
        listening = asyncio.create_task(_listen(channels, running), name="listen to the client")
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream, number in ((running.stdout, _STDOUT), (running.stderr, _STDERR)):
                    assert stream is not None
                    tasks.create_task(_copy(stream, channels, number), name=f"copy {number}")
            outcome = msgspec.json.encode(_outcome(await running.wait()))
            await _send(channels, _OUTCOME, outcome)
        finally:
            listening.cancel()
        await channels.close()
        return channels

    async def _logs(self, request: web.Request) -> web.Response:
        part = self._part(request)
        if request.query.get("previous"):
            raise web.HTTPBadRequest(text="there is no log of a container before this one")
        lines = part.log.read_bytes().splitlines(keepends=True) if part.log.exists() else []
        count = int(request.query.get("tailLines", len(lines)))
        return web.Response(body=b"".join(lines[max(0, len(lines) - count) :]))

    def _part(self, request: web.Request) -> Part:
        names = request.match_info
        try:
            return self._parts[names["namespace"], names["pod"], names["container"]]
        except KeyError:
            raise web.HTTPNotFound(
                text=f"there is no container {'/'.join(names.values())}"
            ) from None


@web.middleware
async def _administrators_only(request: web.Request, handler: Any) -> web.StreamResponse:
    """The CA that signed is that of service accounts too."""
    assert request.transport is not None
    subject = request.transport.get_extra_info("peercert")["subject"]
    if ("organizationName", ADMINISTRATORS) not in (pair for names in subject for pair in names):
        raise web.HTTPForbidden(text="this is for the API server")
    answer: web.StreamResponse = await handler(request)
    return answer


async def _copy(stream: asyncio.StreamReader, channels: web.WebSocketResponse, number: int) -> None:
    """Send what comes out of a command."""
    while data := await stream.read(_CHUNK):
        await _send(channels, number, data)


async def _send(channels: web.WebSocketResponse, number: int, data: bytes) -> None:
    """Send a part of a stream, unless the client has left: see _listen."""
    with suppress(ConnectionError):
        await channels.send_bytes(bytes((number,)) + data)


async def _listen(channels: web.WebSocketResponse, running: asyncio.subprocess.Process) -> None:
    """Give a command what the client says, and end it when the client leaves."""
    async for message in channels:
        if message.type is WSMsgType.BINARY and message.data and running.stdin is not None:
            number, data = message.data[0], message.data[1:]
            if number == _STDIN:
                running.stdin.write(data)
                with suppress(ConnectionError):  # it does not read, or has ended
                    await running.stdin.drain()
            elif number == _CLOSE and data == bytes((_STDIN,)):
                running.stdin.close()
    if running.returncode is None:
        running.kill()


def _outcome(code: int) -> Mapping[str, Any]:
    """A `Status` of Kubernetes, as clients expect it: the exit code is in its causes."""
    if code == 0:
        return {"status": "Success"}
    return {
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: {code}",
        "code": HTTPStatus.INTERNAL_SERVER_ERROR,
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }

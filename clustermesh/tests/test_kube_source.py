"""
What a real API server cannot be made to say at will, said by a server of the test.

What it can be made to say is in e2e/kube.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec
import pytest
from aiohttp import web

from clustermesh.errors import BadRowError
from clustermesh.health import Health
from clustermesh.kube import Kube, KubeConfig, KubeError, Resource, kube_source
from clustermesh.kube.credentials import Given
from clustermesh.model import ObjectName
from clustermesh.state import Table, replicate

from .etcd_server import running, until

THINGS = Resource("v1", "things")

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Spec(msgspec.Struct):
    size: int


class Metadata(msgspec.Struct):
    name: str


class Thing(msgspec.Struct):
    metadata: Metadata
    spec: Spec


def decode(raw: msgspec.Raw) -> tuple[str, int]:
    thing = msgspec.json.decode(raw, type=Thing)
    if thing.spec.size < 0:
        raise BadRowError("spec.size: less than nothing")
    return thing.metadata.name, thing.spec.size


def thing(name: str, size: object, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "spec": {"size": size}}


class Server:
    """An API server that answers a listing or a watch with the next thing that it was told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self._answers: list[Handler] = []
        self._told = asyncio.Event()

    def lists(self, *things: dict[str, Any], version: int, more: str = "") -> None:
        meta = {"resourceVersion": str(version), "continue": more}
        self.answers(json.dumps({"metadata": meta, "items": things}))

    def answers(self, text: str, code: int = 200) -> None:
        async def handle(_: web.Request) -> web.Response:
            return web.Response(text=text, status=code)

        self._add(handle)

    def refuses(self, code: int, message: str, wait: int = 0) -> None:
        details = {"retryAfterSeconds": wait}
        self.answers(json.dumps({"code": code, "message": message, "details": details}), code)

    def watches(self, *pieces: bytes, cut: bool = False) -> None:
        """Send these pieces one by one, then end, or break the connection."""

        async def handle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0.01)
            if cut:
                assert request.transport is not None
                request.transport.abort()
            return response

        self._add(handle)

    def _add(self, handle: Handler) -> None:
        self._answers.append(handle)
        self._told.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        query.pop("timeoutSeconds", None)
        self.asked.append(query)
        while not self._answers:
            self._told.clear()
            await self._told.wait()
        return await self._answers.pop(0)(request)


def events(*changes: tuple[str, dict[str, Any]]) -> bytes:
    lines = (json.dumps({"type": kind, "object": item}) for kind, item in changes)
    return "".join(f"{line}\n" for line in lines).encode()


@asynccontextmanager
async def followed(server: Server) -> AsyncIterator[tuple[dict[str, int], Health]]:
    """The rows that a reader of the server has, and its health."""
    app = web.Application()
    app.router.add_get("/api/v1/things", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    config = KubeConfig("a test", f"http://{host}:{port}", "default", Given(token=b"secret"))
    health = Health("things")
    writer = Table[str, int]("things").writer("test")
    try:
        async with Kube(config) as kube:
            source = kube_source(kube, THINGS, decode, lambda name: name.name, health=health)
            async with running(replicate(source, writer)):
                yield writer.own, health
    finally:
        await runner.cleanup()


async def test_lines_may_be_cut_anywhere() -> None:
    server = Server()
    server.lists(thing("a", 1, 5), version=10)
    text = events(*(("ADDED", thing(f"n{n}", n, 11 + n)) for n in range(20)))
    server.watches(*(text[start : start + 37] for start in range(0, len(text), 37)))
    async with followed(server) as (rows, _):
        await until(lambda: rows == {"a": 1, **{f"n{n}": n for n in range(20)}})
        await until(lambda: len(server.asked) == 3)
    assert server.asked[2]["resourceVersion"] == "30"  # of the last event


async def test_a_listing_of_several_pages_drops_nothing_before_its_end() -> None:
    server = Server()
    server.lists(thing("a", 1, 5), thing("b", 2, 6), version=10)
    server.watches(cut=True)
    server.refuses(410, "too old resource version")
    server.lists(thing("b", 3, 20), version=21, more="token")
    async with followed(server) as (rows, health):
        await until(lambda: rows == {"a": 1, "b": 3})
        server.refuses(410, "the continue token is too old")
        server.lists(thing("b", 3, 20), version=22)
        await until(lambda: rows == {"b": 3})
        assert health.listings == 3
    assert server.asked[4] == {"limit": "500", "continue": "token"}


async def test_a_watch_goes_on_where_it_was_cut_even_after_a_bookmark() -> None:
    server = Server()
    server.lists(thing("a", 1, 5), version=10)
    server.watches(
        events(("DELETED", thing("a", 1, 12)), ("BOOKMARK", thing("", 0, 40)))[:-1] + b"\n",
        cut=True,
    )
    async with followed(server) as (rows, health):
        await until(lambda: rows == {} and len(server.asked) == 3)
        assert health.last_error is not None
        assert health.last_error.endswith("the connection broke")
    assert server.asked[2]["resourceVersion"] == "40"


async def test_an_error_in_a_watch_tells_what_came_before_it() -> None:
    server = Server()
    server.lists(version=10)
    gone = {"code": 410, "message": "too old resource version: 11 (99)", "metadata": {}}
    server.watches(events(("ADDED", thing("a", 1, 11)), ("ERROR", gone)))
    async with followed(server) as (rows, health):
        await until(lambda: rows == {"a": 1} and not health.connected)
        assert "watch things: 410 too old resource version: 11 (99)" in (health.last_error or "")
        server.lists(thing("a", 1, 11), thing("b", 2, 98), version=99)
        await until(lambda: rows == {"a": 1, "b": 2})


async def test_a_server_that_is_busy_is_given_the_time_that_it_asks_for() -> None:
    server = Server()
    server.refuses(429, "too many requests", wait=1)
    server.lists(thing("a", 1, 5), version=10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with followed(server) as (rows, _):
        await until(lambda: rows == {"a": 1})
    assert loop.time() - began >= 1.0


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("<html>log in here</html>", 200, "GET /api/v1/things: the answer makes no sense: "),
        ("<html>log in here</html>", 302, "302 <html>log in here</html>"),
        ("not found", 404, "404 it does not know this kind of object: is the CRD missing?"),
        ('{"code": 401, "message": "Unauthorized"}', 401, "a test is not accepted; has it expired"),
    ],
)
async def test_an_answer_that_is_none_is_named(text: str, code: int, error: str) -> None:
    server = Server()
    for _ in range(2):  # a login that is refused is tried twice
        server.answers(text, code)
    async with followed(server) as (rows, health):
        await until(lambda: error in (health.last_error or ""))
        assert rows == {}


async def test_an_object_that_makes_no_sense_is_named_until_it_does() -> None:
    server = Server()
    server.lists(thing("a", 1, 5), thing("b", "big", 6), thing("c", -1, 7), version=10)
    server.watches(events(("MODIFIED", thing("b", 2, 11)), ("MODIFIED", thing("a", -1, 12))))
    server.watches(events(("DELETED", thing("c", -1, 13))))
    seen: list[Iterable[str]] = []
    async with followed(server) as (rows, health):
        await until(lambda: rows == {"b": 2})
        await until(lambda: health.skipped.keys() == {"a"})
        seen.append(health.skipped)
    assert seen == [{"a": "spec.size: less than nothing"}]
    assert health.bad_rows == 3


async def test_a_call_of_an_unreachable_server_names_it_and_the_cause() -> None:
    config = KubeConfig("a test", "http://127.0.0.1:1", "default", Given())
    async with Kube(config) as kube:
        with pytest.raises(KubeError, match=r"^http://127.0.0.1:1: Connection refused$"):
            await kube.delete(THINGS, "a")


def test_paths_are_those_of_the_api() -> None:
    slices = Resource("discovery.k8s.io/v1", "endpointslices")
    assert slices.path() == "/apis/discovery.k8s.io/v1/endpointslices"
    assert THINGS.path("a", "b") == "/api/v1/namespaces/b/things/a"
    assert str(ObjectName("b", "a")) == "b/a"

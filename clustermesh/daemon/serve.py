from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final

import msgspec

from clustermesh.errors import UserError
from clustermesh.imports import bare_package, hollow
from clustermesh.settings import Address, TcpAddress, UnixAddress

from .daemon import Daemon
from .metrics import Snapshot
from .prometheus import CONTENT_TYPE_LATEST

# Only the server: the client makes a TLS context with all the system's authorities at import.
with bare_package("aiohttp"), hollow("argparse"):
    from aiohttp import web

_SLICE: Final = 0.002
"""Seconds of rendering after which other tasks get a turn."""

_BUFFER: Final = 1 << 16
"""Bytes that are sent at once."""


@contextlib.asynccontextmanager
async def serve(daemon: Daemon, address: Address) -> AsyncIterator[Address]:
    """
    Serve what `daemon` shows over HTTP while the context is open; gives the address bound to.

    Raises:
        UserError: the address is taken, or cannot be listened on.
    """
    runner = web.AppRunner(_application(daemon), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        with _bind_errors(address):
            site: web.BaseSite
            if isinstance(address, TcpAddress):
                site = web.TCPSite(runner, address.host, address.port)
            else:
                _refuse_live_socket(address)
                site = web.UnixSite(runner, str(address.path))
            await site.start()
        if isinstance(address, TcpAddress):
            address = address._replace(port=runner.addresses[0][1])
        try:
            yield address
        finally:
            if isinstance(address, UnixAddress):
                address.path.unlink(missing_ok=True)
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def _bind_errors(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        cause = "it is in use" if taken else error.strerror or str(error)
        raise UserError(
            f"cannot listen on {address}: {cause}",
            hint="stop what listens there, or choose another with --listen" if taken else "",
        ) from error


def _refuse_live_socket(address: UnixAddress) -> None:
    """Asyncio removes a socket file that is in the way, even that of a daemon that still runs."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(address.path))
        raise UserError(
            f"cannot listen on {address}: it is in use",
            hint="stop what listens there, or choose another with --listen",
        )


def _application(daemon: Daemon) -> web.Application:
    handlers = _Handlers(daemon)
    application = web.Application()
    application.add_routes(
        [
            web.get("/healthz", handlers.healthz),
            web.get("/readyz", handlers.readyz),
            web.get("/metrics", handlers.metrics),
            web.get("/status", handlers.status),
            web.get("/tables", handlers.tables),
            web.get("/tables/{name}", handlers.table, allow_head=False),
        ]
    )
    return application


class _Handlers:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def healthz(self, request: web.Request) -> web.Response:
        """Whether the event loop turns: that it answers says so."""
        del request
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        del request
        if reasons := self._daemon.reasons():
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ready\n")

    async def metrics(self, request: web.Request) -> web.Response:
        del request
        body = await asyncio.to_thread(Snapshot.take(self._daemon).render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def status(self, request: web.Request) -> web.Response:
        del request
        return _json(self._daemon.status())

    async def tables(self, request: web.Request) -> web.Response:
        del request
        return _json(list(self._daemon.tables))

    async def table(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        shown = self._daemon.tables.get(name)
        if shown is None:
            known = ", ".join(self._daemon.tables)
            return web.Response(
                status=404, text=f"{self._daemon.name} has no table {name!r}, only {known}\n"
            )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"rows":[')
        await _write_all(response, shown.rows())
        await response.write(b'],"failures":[')
        await _write_all(response, shown.failures())
        await response.write(b"]}")
        await response.write_eof()
        return response


async def _write_all(response: web.StreamResponse, items: Iterable[object]) -> None:
    for part in _parts(items):
        await response.write(part)
        await asyncio.sleep(0)


def _parts(items: Iterable[object]) -> Iterator[bytes]:
    """The items as JSON with commas between them, in parts that each take little time to make."""
    encode = msgspec.json.Encoder().encode
    part, until, comma = bytearray(), time.perf_counter() + _SLICE, b""
    for item in items:
        part += comma + encode(item)
        comma = b","
        if len(part) >= _BUFFER or time.perf_counter() >= until:
            yield bytes(part)
            part, until = bytearray(), time.perf_counter() + _SLICE
    if part:
        yield bytes(part)


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")

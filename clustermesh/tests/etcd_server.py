"""
A real etcd for tests, with TLS and a CA of its own, and a wire that can be cut.

A directory of tests takes the fixtures by importing them into its `conftest.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from certs.ca import create_authority
from certs.leaf import Profile, admin, issue, server
from certs.store import Store
from clustermesh.etcd import EtcdConfig, make_config

_DEADLINE: Final = 20.0  # seconds until a condition has to hold


class EtcdServer:
    """An etcd on a free port of 127.0.0.1, which can be stopped, started and emptied."""

    def __init__(self, directory: Path) -> None:
        self.certs = Store(directory / "certs")
        self.port, self._peer_port = _free_ports(2)
        self._data = directory / "data"
        self._log = directory / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.authority = create_authority(now=datetime.now(UTC))
        with self.certs.writing():
            self.certs.write_authority(self.authority)
        self.issue(server("kube-system"))
        self.issue(admin("east"))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    def config(self, user: str = "admin", *urls: str) -> EtcdConfig:
        """How `user` reaches it, at `urls` if there are any."""
        ca, cert, key = self.certs.path("ca", "crt"), *self.pair(user)
        return make_config(urls or [self.url], ca, cert, key, where="test")

    def pair(self, name: str) -> tuple[Path, Path]:
        """Where a certificate and its key are."""
        return self.certs.path(name, "crt"), self.certs.path(name, "key")

    def issue(self, profile: Profile, lifetime: timedelta = timedelta(days=1)) -> None:
        """Make or replace a certificate."""
        pair = issue(profile, self.authority, now=datetime.now(UTC), lifetime=lifetime)
        with self.certs.writing():
            self.certs.write(profile.name, pair)

    def start(self) -> None:
        """Start, and wait until it answers."""
        cert, key = self.pair("server")
        peer = f"http://127.0.0.1:{self._peer_port}"
        flags = {
            "name": "test",
            "data-dir": self._data,
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"test={peer}",
            # Random, or an emptied data directory could not be told from the old one.
            "initial-cluster-token": uuid4().hex,
            "client-cert-auth": "true",
            "trusted-ca-file": self.certs.path("ca", "crt"),
            "cert-file": cert,
            "key-file": key,
            "quota-backend-bytes": 1 << 30,
        }
        command = ["etcd", *(f"--{flag}={value}" for flag, value in flags.items())]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _DEADLINE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """Lose the data directory."""
        assert self._process is None, "stop it first"
        shutil.rmtree(self._data)

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.certs.path("ca", "crt")))
        context.load_cert_chain(*self.pair("admin"))
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", context=context) as r:
            return bool(json.load(r)["health"] == "true")
        return False


class Proxy:
    """A TCP wire to a port, of 127.0.0.1 if not told otherwise, that can be cut and mended."""

    def __init__(self, to: int, host: str = "127.0.0.1") -> None:
        self._to = (host, to)
        (self.port,) = _free_ports(1)
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """What to dial."""
        return f"https://127.0.0.1:{self.port}"

    async def mend(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        assert self._server is not None
        self._server.close()
        for end in tuple(self._ends):
            end.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:  # whoever dialled shall see it too
            self._ends.discard(writer)
            writer.transport.abort()
            return
        self._ends.add(far_writer)
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump(reader, far_writer), name="proxy up")
            pumps.create_task(self._pump(far_reader, writer), name="proxy down")
        self._ends -= {writer, far_writer}

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def proxy_to(server: EtcdServer) -> AsyncIterator[Proxy]:
    """A wire to `server`, mended."""
    proxy = Proxy(server.port)
    await proxy.mend()
    try:
        yield proxy
    finally:
        proxy.cut()
        await asyncio.sleep(0.01)  # for the pumps to see it


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, within: float = _DEADLINE
) -> None:
    """Wait until `condition` holds, which may have to ask etcd; `within` is in seconds."""
    async with asyncio.timeout(within):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(*loops: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run coroutines beside the body, and cancel them after it. What they raise is raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        yield
        for task in tasks:
            task.cancel()


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd for the whole session. Tests keep to their own prefix and leave it running."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        yield server


@pytest.fixture
def own_etcd_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd for one test, which may do anything to it."""
    server = EtcdServer(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        yield server


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses."""
    return f"test/{uuid4().hex}/"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

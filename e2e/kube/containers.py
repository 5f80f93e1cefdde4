"""A pod as plain processes: what the chart installs, run by a test."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from clustermesh.sandbox.kube.containers import Containers, Get

from .chart import Object

_BIN: Final = str(Path(sys.executable).parent)


class Pod:
    """A pod in a world of its own."""

    def __init__(self, spec: Object, directory: Path, get: Get, names: Mapping[str, str]) -> None:
        """
        Args:
            directory: for its volumes and logs.
            names: what is found by another name here than in a cluster: addresses, hosts.
        """
        self._directory = directory
        self._containers = Containers(spec, directory, names)
        self._containers.write_volumes(get)

    @contextlib.contextmanager
    def running(self, name: str, *more: str, **fields: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a container while the context is open, with all that it starts."""
        with (self._directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self._containers.command(name, *more, **fields),
                env=self._variables(name, fields),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(self, name: str, *command: str, **fields: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as `kubectl exec` does."""
        return subprocess.run(
            command,
            env=self._variables(name, fields),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def log(self, name: str) -> str:
        """What a container has said."""
        return (self._directory / f"{name}.log").read_text()

    def _variables(self, name: str, fields: Mapping[str, str]) -> dict[str, str]:
        own = self._containers.environment(name, **fields)
        return {"PATH": f"{_BIN}:{os.environ['PATH']}", **own}


def two_addresses(port: int) -> tuple[str, str]:
    """A pod's loopback and its own address: two of this host's where nobody has that port."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        first = IPv4Address("127.160.0.0") + 2 * random.randrange(1 << 20)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for address in (first, first + 1):
                stack.enter_context(socket.socket()).bind((str(address), port))
            return str(first), str(first + 1)
    raise AssertionError("no address of this host is free")

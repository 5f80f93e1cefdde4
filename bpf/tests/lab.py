"""What the kernel tests stand on: a bpffs, a cgroup, and processes in network namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import pytest

from clustermesh.model import L4Address, Protocol

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Node:
    """
    A process in a network namespace of its own, and in a cgroup.

    The namespace has no name: it goes with the process, and the process with the test.
    """

    def __init__(self, cgroup: Path | None = None) -> None:
        self._pool = multiprocessing.get_context("fork").Pool(1, _enter, (cgroup,))
        self.pid = self.do(os.getpid)

    def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a module's function there. What it raises is raised here."""
        return self.start(function, *args, **kwargs)()

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        """Call it there without waiting; the result is the way to wait."""
        result = self._pool.apply_async(function, args, kwargs)
        return lambda: result.get(timeout=60)

    def run(self, *commands: str) -> None:
        """Run each command there, split at spaces."""
        for command in commands:
            self.do(run, command)

    def close(self) -> None:
        """End the process and its namespace."""
        self._pool.terminate()
        self._pool.join()


def run(command: str) -> None:
    """Run a command; CalledProcessError shows what it said."""
    subprocess.run(command.split(), check=True)


def address(text: str) -> L4Address:
    """`10.0.0.1:80/TCP`, `[fd00::1]:80/UDP`."""
    endpoint, _, protocol = text.partition("/")
    host, _, port = endpoint.rpartition(":")
    return L4Address(ip_address(host.strip("[]")), int(port), Protocol(protocol))


@contextlib.contextmanager
def node(cgroup: Path | None = None) -> Iterator[Node]:
    """A node with `lo` up."""
    made = Node(cgroup)
    try:
        made.run("ip link set lo up")
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def mounted_bpffs(directory: Path) -> Iterator[Path]:
    """A BPF file system of its own at `directory`."""
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(directory)], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no BPF file system can be mounted: {mount.stderr.strip()}")
    try:
        yield directory
    finally:
        run(f"umount {directory}")


@contextlib.contextmanager
def fresh_cgroup(name: str) -> Iterator[Path]:
    """An empty cgroup2 directory, wherever this machine mounts cgroup2."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    root = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    if root is None:
        pytest.skip("cgroup2 is not mounted")
    path = root / f"clustermesh-test-{os.getpid()}-{name}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


def _enter(cgroup: Path | None) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    if _LIBC.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")

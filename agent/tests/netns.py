"""A network namespace for a test: an underlay `eth0`, and nothing that a test could break."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from agent.kernel.netlink import Netlink
from clustermesh.sandbox.namespace import run_in_new

Body: TypeAlias = Callable[[Netlink], Awaitable[None]]


def in_namespace(body: Body) -> None:
    """Run `body` in a fresh namespace that has an underlay, and come back unharmed."""
    before = Path("/proc/thread-self/ns/net").readlink()

    async def main() -> None:
        sh("ip link set lo up")
        sh("ip link add eth0 type veth peer name wire")
        sh("ip link set wire up")
        sh("ip link set eth0 up")
        sh("ip address add 172.30.1.1/16 dev eth0")
        sh("ip address add fd00:30::1/64 dev eth0 nodad")
        async with Netlink.open() as netlink:
            await body(netlink)

    run_in_new(lambda: asyncio.run(main()))
    assert Path("/proc/thread-self/ns/net").readlink() == before


def sh(command: str) -> str:
    """What `command` prints; it must succeed."""
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout

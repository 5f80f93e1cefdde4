"""
A guarded node, and everything else at the other end of its wire.

    10.1.0.5   here ── 192.0.2.1 ═════════ 192.0.2.2 ── there   10.2.0.7   10.9.0.1
    fd00:1::5          2001:db8::1   2001:db8::2                fd00:2::7
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from agent.kernel import inspect
from agent.kernel.datapath import Datapath
from agent.kernel.layouts import DropReason
from agent.rows import IpcacheEntry
from agent.targets.ipcache import IpcacheTarget
from clustermesh.model import REMOTE_NODE, ClusterId, IdentityId

from .conftest import SMALL
from .lab import Node, mounted_bpffs, node

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

PORT: Final = 7000
DATA: Final = b"in plain text"
HERE, THERE = ClusterId(1), ClusterId(2)

IPCACHE: Final[Mapping[str, tuple[int, ClusterId, str | None]]] = {
    "10.1.0.5/32": (0x10005, HERE, None),
    "10.2.0.0/24": (2, THERE, "192.0.2.2"),
    "10.2.0.7/32": (0x20007, THERE, "192.0.2.2"),
    "fd00:2::/64": (2, THERE, "192.0.2.2"),
    "192.0.2.2/32": (REMOTE_NODE, THERE, "192.0.2.2"),
    "2001:db8::2/128": (REMOTE_NODE, THERE, "192.0.2.2"),
    # A pod with no node at all is a foreign one too; a node that says it is a pod stays a node.
    "10.3.0.0/24": (2, ClusterId(3), None),
    "192.0.2.3/32": (0x20009, THERE, "192.0.2.3"),
}


class Row(NamedTuple):
    description: str
    sender: str
    source: str
    destination: str
    passes: bool


ROWS = [
    Row("to a pod of another cluster", "here", "10.1.0.5", "10.2.0.7", passes=False),
    Row("to one that only its CIDR is known of", "here", "10.1.0.5", "10.2.0.8", passes=False),
    Row("the same with IPv6", "here", "fd00:1::5", "fd00:2::7", passes=False),
    Row("from the node itself", "here", "192.0.2.1", "10.2.0.7", passes=False),
    Row("to a pod whose node is not known", "here", "10.1.0.5", "10.3.0.1", passes=False),
    Row("with another's source address", "here", "10.2.0.9", "10.9.0.1", passes=False),
    Row("to somebody who is in no cluster", "here", "10.1.0.5", "10.9.0.1", passes=True),
    Row("to a node of another cluster", "here", "192.0.2.1", "192.0.2.2", passes=True),
    Row("the same with IPv6", "here", "2001:db8::1", "2001:db8::2", passes=True),
    Row("to a node that says it is a pod", "here", "192.0.2.1", "192.0.2.3", passes=True),
    Row("from a pod of another cluster", "there", "10.2.0.7", "10.1.0.5", passes=False),
    Row("the same with IPv6", "there", "fd00:2::7", "fd00:1::5", passes=False),
    Row("from a node of another cluster", "there", "192.0.2.2", "192.0.2.1", passes=True),
    Row("from somebody who is in no cluster", "there", "10.9.0.1", "10.1.0.5", passes=True),
]


class Wire(NamedTuple):
    here: Node
    there: Node
    bpffs: Path


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with ExitStack() as stack:
        bpffs = stack.enter_context(mounted_bpffs(tmp_path_factory.mktemp("guard") / "bpffs"))
        here, there = stack.enter_context(node()), stack.enter_context(node())
        here.run(f"ip link add wire type veth peer name wire netns {there.pid}")
        for number, made in enumerate((here, there), 1):
            made.run(
                f"ip address add 192.0.2.{number}/24 dev wire",
                f"ip address add 2001:db8::{number}/64 dev wire nodad",
                "ip link set wire addrgenmode none up",
            )
        for pod in ("10.1.0.5", "10.2.0.9", "fd00:1::5"):
            here.run(f"ip address add {pod} dev lo")
        for pod in ("10.2.0.7", "10.2.0.8", "10.3.0.1", "10.9.0.1", "fd00:2::7"):
            there.run(f"ip address add {pod} dev lo")
        there.run("ip address add 192.0.2.3/24 dev wire")
        here.run("ip route add 10.0.0.0/8 via 192.0.2.2", "ip route add fd00::/16 via 2001:db8::2")
        there.run("ip route add 10.0.0.0/8 via 192.0.2.1", "ip route add fd00::/16 via 2001:db8::1")
        for neighbour in ("192.0.2.2", "2001:db8::2"):
            here.run(f"ping -q -n -c1 -w20 {neighbour}")  # else the first packet may be the last
        here.do(guard, bpffs)
        yield Wire(here, there, bpffs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.sender}: {row.description}")
def test_what_is_in_plain_text(row: Row, wire: Wire) -> None:
    sender, receiver = (wire.here, wire.there)[:: 1 if row.sender == "here" else -1]
    before = inspect.drops(wire.bpffs)[DropReason.PLAIN_TEXT]
    receiver.do(listen, row.destination)
    sender.do(send, row.source, row.destination)
    if row.passes:
        assert receiver.do(heard, 20.0) == row.source
        return
    deadline = time.monotonic() + 20
    while inspect.drops(wire.bpffs)[DropReason.PLAIN_TEXT] == before:
        assert time.monotonic() < deadline, "it was not dropped"
    assert receiver.do(heard, 0.0) == "nothing"


# What follows runs on a node.

_datapath: Datapath
_pod: socket.socket


def guard(bpffs: Path) -> None:
    """Guard the wire, with this ipcache."""
    global _datapath  # noqa: PLW0603 - the node's process is the object
    _datapath = Datapath.open(bpffs, SMALL)
    asyncio.run(_fill(IpcacheTarget(_datapath)))
    for _ in range(2):  # idempotent
        _datapath.attach_guard([socket.if_nametoindex("wire")], HERE)
    _datapath.settle()


async def _fill(target: IpcacheTarget) -> None:
    puts = {
        ip_network(prefix): IpcacheEntry(
            IdentityId(identity), cluster, ip_address(node) if node else None
        )
        for prefix, (identity, cluster, node) in IPCACHE.items()
    }
    assert await target.apply(puts, ()) == {}


def listen(ip: str) -> None:
    global _pod  # noqa: PLW0603
    _pod = _udp(ip)
    _pod.bind((ip, PORT))


def heard(seconds: float) -> str:
    with _pod:
        _pod.settimeout(seconds)
        try:
            data, source = _pod.recvfrom(64)
        except (TimeoutError, BlockingIOError):
            return "nothing"
        assert data == DATA
        return str(source[0])


def send(source: str, destination: str) -> None:
    with _udp(source) as client:
        client.bind((source, 0))
        client.sendto(DATA, (destination, PORT))


def _udp(ip: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)

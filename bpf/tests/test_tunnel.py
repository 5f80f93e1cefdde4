"""
Two nodes in namespaces, a real wire and real VXLAN devices between them.

    10.1.0.5   east ── cm_vxlan ══ 192.0.2.1 ═════════ 192.0.2.2 ══ cm_vxlan ── west   10.2.0.7
    fd00:1::5                      2001:db8::1   2001:db8::2                     fd00:2::7

BPF_PROG_TEST_RUN would show a verdict, but neither the tunnel key nor what the device makes of it.
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
from agent.kernel.layouts import Direction, DropReason
from agent.rows import IpcacheEntry
from agent.targets.ipcache import IpcacheTarget
from clustermesh.model import ClusterId, IdentityId

from .conftest import SMALL
from .lab import Node, mounted_bpffs, node

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

EAST_POD, WEST_POD = 0x10005, 0x20007  # of the identity ranges of clusters 1 and 2
PORT: Final = 7000
VXLAN_PORT: Final = 8472
DATA: Final = b"between clusters"

Ipcache = Mapping[str, tuple[int, str | None]]  # prefix -> identity, node

EAST_SEES: Ipcache = {
    "10.1.0.5/32": (EAST_POD, None),
    "fd00:1::5/128": (EAST_POD, None),
    "10.2.0.0/16": (WEST_POD, "192.0.2.2"),
    "fd00:2::/64": (WEST_POD, "192.0.2.2"),
}
WEST_SEES: Ipcache = {
    "10.1.0.0/16": (EAST_POD, "192.0.2.1"),
    "fd00:1::/64": (EAST_POD, "192.0.2.1"),
    "10.2.0.7/32": (WEST_POD, None),
    "fd00:2::7/128": (WEST_POD, None),
}


class Row(NamedTuple):
    description: str
    east: Ipcache  # differences from EAST_SEES
    west: Ipcache
    source: str
    destination: str
    seen: str  # who west's pod heard, and the VNI on the wire; or where and why it was dropped


ROWS = [
    Row("IPv4 in IPv4", {}, {}, "10.1.0.5", "10.2.0.7", "10.1.0.5, VNI 0x10005"),
    Row("IPv6 in IPv4", {}, {}, "fd00:1::5", "fd00:2::7", "fd00:1::5, VNI 0x10005"),
    Row(
        "IPv4 in IPv6",
        {"10.2.0.0/16": (WEST_POD, "2001:db8::2")},
        {"10.1.0.0/16": (EAST_POD, "2001:db8::1")},
        "10.1.0.5",
        "10.2.0.7",
        "10.1.0.5, VNI 0x10005",
    ),
    Row(
        "IPv6 in IPv6",
        {"fd00:2::/64": (WEST_POD, "2001:db8::2")},
        {"fd00:1::/64": (EAST_POD, "2001:db8::1")},
        "fd00:1::5",
        "fd00:2::7",
        "fd00:1::5, VNI 0x10005",
    ),
    Row(
        "the longest prefix decides",
        {"10.2.0.0/16": (WEST_POD, "192.0.2.99"), "10.2.0.7/32": (WEST_POD, "192.0.2.2")},
        {},
        "10.1.0.5",
        "10.2.0.7",
        "10.1.0.5, VNI 0x10005",
    ),
    Row(
        "a source without identity is the world",
        {},
        {},
        "10.1.0.6",
        "10.2.0.7",
        "10.1.0.6, VNI 0x2",
    ),
    Row(
        "no node for the destination",
        {"10.2.0.0/16": (WEST_POD, None)},
        {},
        "10.1.0.5",
        "10.2.0.7",
        "east: NO_TUNNEL",
    ),
    Row("to a group", {}, {}, "10.1.0.5", "224.0.0.5", "east: MULTICAST"),
    Row(
        "a source behind another node",
        {},
        {"10.1.0.5/32": (EAST_POD, "192.0.2.77")},
        "10.1.0.5",
        "10.2.0.7",
        "west: SPOOFED_SOURCE",
    ),
    Row(
        "a source behind the same node's other address",
        {},
        {"10.1.0.5/32": (EAST_POD, "2001:db8::1")},
        "10.1.0.5",
        "10.2.0.7",
        "west: SPOOFED_SOURCE",
    ),
    Row(
        "a source in our own cluster",
        {},
        {"10.1.0.5/32": (WEST_POD, None)},
        "10.1.0.5",
        "10.2.0.7",
        "west: SPOOFED_SOURCE",
    ),
    Row(
        "a source that nobody knows",
        {},
        {},
        "10.9.0.5",
        "10.2.0.7",
        "west: SPOOFED_SOURCE",
    ),
    Row(
        "an identity of another cluster",
        {"10.1.0.5/32": (WEST_POD, None)},
        {},
        "10.1.0.5",
        "10.2.0.7",
        "west: FOREIGN_IDENTITY",
    ),
    Row(
        "on to a third cluster",
        {"10.3.0.0/16": (0x30001, "192.0.2.2")},
        {"10.3.0.0/16": (0x30001, "192.0.2.3")},
        "10.1.0.5",
        "10.3.0.1",
        "west: TRANSIT",
    ),
]


class Mesh(NamedTuple):
    east: Node
    west: Node
    bpffs: Mapping[str, Path]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two nodes, with routes into a VXLAN device that has no programs yet."""
    directory = tmp_path_factory.mktemp("tunnel")
    with ExitStack() as stack:
        bpffs = {n: stack.enter_context(mounted_bpffs(directory / n)) for n in ("east", "west")}
        east, west = stack.enter_context(node()), stack.enter_context(node())
        east.run(f"ip link add wire type veth peer name wire netns {west.pid}")
        for number, made in enumerate((east, west), 1):
            made.run(
                f"ip address add 192.0.2.{number}/24 dev wire",
                f"ip address add 2001:db8::{number}/64 dev wire nodad",
                "ip link set wire addrgenmode none up",
                f"ip link add cm_vxlan type vxlan external dstport {VXLAN_PORT} udp6zerocsumrx",
                "ip link set cm_vxlan arp off addrgenmode none mtu 1400 up",
            )
        for pod in ("10.1.0.5", "10.1.0.6", "10.9.0.5", "fd00:1::5"):
            east.run(f"ip address add {pod} dev lo")
        for pod in ("10.2.0.7", "10.3.0.1", "fd00:2::7"):
            west.run(f"ip address add {pod} dev lo")
        for prefix in ("10.2.0.0/16", "10.3.0.0/16", "fd00:2::/64", "224.0.0.0/4"):
            east.run(f"ip route add {prefix} dev cm_vxlan")
        for prefix in ("10.1.0.0/16", "10.9.0.0/16", "fd00:1::/64"):
            west.run(f"ip route add {prefix} dev cm_vxlan")
        yield Mesh(east, west, bpffs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.description)
def test_packet_through_the_tunnel(row: Row, mesh: Mesh) -> None:
    mesh.east.do(program, mesh.bpffs["east"], {**EAST_SEES, **row.east})
    mesh.west.do(program, mesh.bpffs["west"], {**WEST_SEES, **row.west})
    drops = {name: inspect.drops(path) for name, path in mesh.bpffs.items()}
    traffic = {name: inspect.counters(path) for name, path in mesh.bpffs.items()}

    mesh.west.do(listen, row.destination)
    mesh.east.do(send, row.source, row.destination)

    if ": " in row.seen:
        assert row.seen in wait_for_drop(mesh, drops, row.seen)
        assert mesh.west.do(heard, 0.0) == "nothing"
    else:
        assert mesh.west.do(heard, 20.0) == row.seen
        out = inspect.counters(mesh.bpffs["east"])[Direction.EGRESS]
        into = inspect.counters(mesh.bpffs["west"])[Direction.INGRESS]
        assert out.packets - traffic["east"][Direction.EGRESS].packets == 1
        assert into.packets - traffic["west"][Direction.INGRESS].packets == 1
        assert into.bytes - traffic["west"][Direction.INGRESS].bytes > len(DATA)


def wait_for_drop(
    mesh: Mesh, before: Mapping[str, Mapping[DropReason, int]], expected: str
) -> set[str]:
    """What the nodes have dropped since, as soon as `expected` is among it."""
    deadline, dropped = time.monotonic() + 20, set[str]()
    while time.monotonic() < deadline and expected not in dropped:
        for name, path in mesh.bpffs.items():
            now = inspect.drops(path)
            dropped |= {f"{name}: {r.name}" for r in now if now[r] > before[name][r]}
    return dropped


# What follows runs on a node.

_datapath: Datapath | None = None
_wire: socket.socket
_pod: socket.socket


def program(bpffs: Path, ipcache: Ipcache) -> None:
    """Attach to the tunnel device, with this ipcache."""
    global _datapath  # noqa: PLW0603 - the node's process is the object
    if _datapath is None:
        _datapath = Datapath.open(bpffs, SMALL)
    asyncio.run(_fill(IpcacheTarget(_datapath), ipcache))
    _datapath.attach_tunnel(socket.if_nametoindex("cm_vxlan"))
    _datapath.settle()


async def _fill(target: IpcacheTarget, ipcache: Ipcache) -> None:
    puts = {
        ip_network(prefix): IpcacheEntry(
            IdentityId(identity), ClusterId(identity >> 16), ip_address(node) if node else None
        )
        for prefix, (identity, node) in ipcache.items()
    }
    assert await target.apply(puts, set(await target.actual()) - puts.keys()) == {}
    assert await target.actual() == puts


def listen(ip: str) -> None:
    """Open the pod's socket, and look at the wire."""
    global _wire, _pod  # noqa: PLW0603
    _wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x3))
    _wire.bind(("wire", 0))
    _pod = _udp(ip)
    _pod.bind((ip, PORT))


def heard(seconds: float) -> str:
    """Who the pod heard, and the VNI that came over the wire with it."""
    with _wire, _pod:
        _pod.settimeout(seconds)
        try:
            data, source = _pod.recvfrom(64)
        except (TimeoutError, BlockingIOError):
            return "nothing"
        assert data == DATA
        _wire.settimeout(seconds)
        while True:
            vni = vni_of(_wire.recv(2048))
            if vni is not None:
                return f"{source[0]}, VNI {vni:#x}"


def vni_of(frame: bytes) -> int | None:
    """The VNI, if the frame is VXLAN over IPv4 or IPv6."""
    start = {b"\x08\x00": 14 + 20, b"\x86\xdd": 14 + 40}.get(frame[12:14])
    if start is None or int.from_bytes(frame[start + 2 : start + 4], "big") != VXLAN_PORT:
        return None
    return int.from_bytes(frame[start + 12 : start + 15], "big")


def send(source: str, destination: str) -> None:
    """Send one datagram from pod to pod."""
    with _udp(source) as client:
        # Else what is sent to a group leaves by the device that has the source address.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"cm_vxlan")
        client.bind((source, 0))
        client.sendto(DATA, (destination, PORT))


def _udp(ip: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)

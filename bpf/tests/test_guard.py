"""
A guarded node, and everything else at the other end of its wire.

    10.1.0.5   here ── 192.0.2.1 ═════════ 192.0.2.2 ── there   10.2.0.7   10.9.0.1
    fd00:1::5          2001:db8::1   2001:db8::2                fd00:2::7
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from agent.kernel import inspect
from agent.kernel.datapath import Datapath
from agent.kernel.layouts import DropReason, Medium
from agent.kernel.links import AttachType
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
    passes: str  # "device": only one that is not known to be an uplink


ROWS = [
    Row("to a pod of another cluster", "here", "10.1.0.5", "10.2.0.7", "no"),
    Row("to one that only its CIDR is known of", "here", "10.1.0.5", "10.2.0.8", "no"),
    Row("the same with IPv6", "here", "fd00:1::5", "fd00:2::7", "no"),
    Row("from the node itself", "here", "192.0.2.1", "10.2.0.7", "no"),
    Row("to a pod whose node is not known", "here", "10.1.0.5", "10.3.0.1", "no"),
    Row("with another's source address", "here", "10.2.0.9", "10.9.0.1", "device"),
    Row("the same with IPv6", "here", "fd00:2::9", "fd00:9::1", "device"),
    Row("to somebody who is in no cluster", "here", "10.1.0.5", "10.9.0.1", "yes"),
    Row("to a node of another cluster", "here", "192.0.2.1", "192.0.2.2", "yes"),
    Row("the same with IPv6", "here", "2001:db8::1", "2001:db8::2", "yes"),
    Row("to a node that says it is a pod", "here", "192.0.2.1", "192.0.2.3", "yes"),
    Row("from a pod of another cluster", "there", "10.2.0.7", "10.1.0.5", "no"),
    Row("the same with IPv6", "there", "fd00:2::7", "fd00:1::5", "no"),
    Row("to a pod of another cluster", "there", "10.9.0.1", "10.2.0.9", "device"),
    Row("the same with IPv6", "there", "fd00:9::1", "fd00:2::9", "device"),
    Row("from a node of another cluster", "there", "192.0.2.2", "192.0.2.1", "yes"),
    Row("from somebody who is in no cluster", "there", "10.9.0.1", "10.1.0.5", "yes"),
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
        here.run(
            "ip link add wire address 02:00:00:00:00:01 type veth"
            f" peer name wire address 02:00:00:00:00:02 netns {there.pid}"
        )
        for number, made in enumerate((here, there), 1):
            made.run(
                f"ip address add 192.0.2.{number}/24 dev wire",
                f"ip address add 2001:db8::{number}/64 dev wire nodad",
                "ip link set wire addrgenmode none up",
            )
            for neighbour in (f"192.0.2.{3 - number}", f"2001:db8::{3 - number}"):
                # Or the first packet may be the last: who looks for it has no link-local address.
                mac = f"02:00:00:00:00:0{3 - number}"
                made.run(f"ip neighbour add {neighbour} lladdr {mac} dev wire nud permanent")
        for pod in ("10.1.0.5", "10.2.0.9", "fd00:1::5", "fd00:2::9"):
            here.run(f"ip address add {pod} dev lo")
        for pod in ("10.2.0.7", "10.2.0.8", "10.3.0.1", "10.9.0.1", "fd00:2::7", "fd00:9::1"):
            there.run(f"ip address add {pod} dev lo")
        there.run("ip address add 192.0.2.3/24 dev wire")
        here.run("ip route add 10.0.0.0/8 via 192.0.2.2", "ip route add fd00::/16 via 2001:db8::2")
        there.run("ip route add 10.0.0.0/8 via 192.0.2.1", "ip route add fd00::/16 via 2001:db8::1")
        here.do(guard, bpffs)
        yield Wire(here, there, bpffs)


@pytest.mark.parametrize("kind", ["uplink", "device"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.sender}: {row.description}")
def test_what_is_in_plain_text(row: Row, kind: str, wire: Wire) -> None:
    wire.here.do(attach, kind == "uplink")
    sender, receiver = (wire.here, wire.there)[:: 1 if row.sender == "here" else -1]
    before = inspect.drops(wire.bpffs)[DropReason.PLAIN_TEXT]
    receiver.do(listen, row.destination)
    sender.do(send, row.source, row.destination)
    if row.passes in {"yes", kind}:
        assert receiver.do(heard, 20.0) == row.source
        return
    deadline = time.monotonic() + 20
    while inspect.drops(wire.bpffs)[DropReason.PLAIN_TEXT] == before:
        assert time.monotonic() < deadline, "it was not dropped"
    assert receiver.do(heard, 0.0) == "nothing"


def test_it_stands_before_programs_that_were_there_before(wire: Wire) -> None:
    """One that takes a packet, of a CNI say, would keep it from all after it."""
    wire.here.do(attach, True)
    found = wire.here.do(programs, "wire", AttachType.TCX_INGRESS)
    if not found:
        pytest.skip("this kernel has no links of interfaces")
    assert found == ["uplink_ingress", "underlay_ingress"]


# What follows runs on a node.

_datapath: Datapath
_pod: socket.socket


def guard(bpffs: Path) -> None:
    """Load it, with this ipcache. Another program is on the wire already."""
    global _datapath  # noqa: PLW0603 - the node's process is the object
    _datapath = Datapath.open(bpffs, SMALL, fast_path=True, guarded=HERE)
    asyncio.run(_fill(IpcacheTarget(_datapath)))
    assert _datapath.fast is not None
    _datapath.fast.set_media({socket.if_nametoindex("wire"): Medium.UNDERLAY})
    attach(True)
    _datapath.settle()


def attach(is_uplink: bool) -> None:
    """Guard the wire, as what it is."""
    assert _datapath.guard is not None
    for _ in range(2):  # idempotent
        _datapath.guard.attach(socket.if_nametoindex("wire"), is_uplink=is_uplink)


def programs(device: str, type_: AttachType) -> list[str]:
    """The names of those on a device, in the order in which they see a packet."""
    ids, count = (ctypes.c_uint32 * 64)(), ctypes.c_uint32(64)
    index = socket.if_nametoindex(device)
    query = ctypes.CDLL("libbpf.so.1").bpf_prog_query
    if query(index, int(type_), 0, None, ids, ctypes.byref(count)):
        return []
    show = ["bpftool", "-j", "prog", "show", "id"]
    said = [
        subprocess.run([*show, str(number)], check=True, capture_output=True, text=True).stdout
        for number in ids[: count.value]
    ]
    return [json.loads(text)["name"] for text in said]


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

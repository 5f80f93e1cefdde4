"""
Two nodes with a pod each, and every kind of packet that a pod can send: past the stack, or into it.

    pod ── eth0 ═══ veth ── east ── wire ═══ wire ── west ── veth ═══ eth0 ── pod

    10.1.0.5, fd00:1::5    by the tunnel    10.2.0.7, fd00:2::7
    10.3.0.5, fd00:3::5    directly         10.4.0.7, fd00:4::7
    10.7.0.5, fd00:7::5    by the tunnel    10.8.0.7, fd00:8::7   IPv6 outside

Frames are made here to the byte, and looked at where they come out of the other pod's device. Which
way they took is what each node counts.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from agent.kernel import inspect
from agent.kernel.datapath import Datapath
from agent.kernel.fast_path import FastPath
from agent.kernel.layouts import Direction, Medium
from agent.kernel.tunnel import Tunnel, TunnelProtocol
from agent.rows import IpcacheEntry, Pod
from agent.targets.ipcache import IpcacheTarget
from agent.targets.pods import PodTarget
from clustermesh.model import ClusterId, IdentityId

from .conftest import SMALL
from .lab import Node, mounted_bpffs, node

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

EAST_POD, WEST_POD, REMOTE_NODE = 0x10005, 0x20007, 6
PORT: Final = 8080
POD_MAC, NODE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
SYN, ACK = 0x02, 0x10
TOKEN: Final = b"the data"

TUNNEL4, DIRECT4 = ("10.1.0.5", "10.2.0.7"), ("10.3.0.5", "10.4.0.7")
TUNNEL6, DIRECT6 = ("fd00:1::5", "fd00:2::7"), ("fd00:3::5", "fd00:4::7")
OVER6: Final = {
    "tunnel 4 over 6": ("10.7.0.5", "10.8.0.7"),
    "tunnel 6 over 6": ("fd00:7::5", "fd00:8::7"),
}
WAYS: Final = {
    "tunnel 4": TUNNEL4,
    "tunnel 6": TUNNEL6,
    **OVER6,
    "direct 4": DIRECT4,
    "direct 6": DIRECT6,
}

EAST_SEES: Final = {
    **{f"10.{n}.0.5/32": (EAST_POD, None) for n in (1, 3, 7)},
    **{f"fd00:{n}::5/128": (EAST_POD, None) for n in (1, 3, 7)},
    **{f"10.{n}.0.0/16": (WEST_POD, "192.0.2.2") for n in (2, 4, 9)},
    **{f"fd00:{n}::/64": (WEST_POD, "192.0.2.2") for n in (2, 4)},
    "10.8.0.0/16": (WEST_POD, "2001:db8::2"),
    "fd00:8::/64": (WEST_POD, "2001:db8::2"),
    "192.0.2.2/32": (REMOTE_NODE, "192.0.2.2"),
}
WEST_SEES: Final = {
    **{f"10.{n}.0.0/16": (EAST_POD, "192.0.2.1") for n in (1, 3, 5)},
    **{f"fd00:{n}::/64": (EAST_POD, "192.0.2.1") for n in (1, 3)},
    "10.7.0.0/16": (EAST_POD, "2001:db8::1"),
    "fd00:7::/64": (EAST_POD, "2001:db8::1"),
    **{f"10.{n}.0.7/32": (WEST_POD, None) for n in (2, 4, 8)},
    **{f"fd00:{n}::7/128": (WEST_POD, None) for n in (2, 4, 8)},
}


class Send(NamedTuple):
    """A frame of a pod; what is not said is as for an ordinary TCP packet."""

    way: str = "tunnel 4"
    protocol: str = "TCP"
    flags: int = SYN
    port: int = 40000
    ttl: int = 64
    tos: int = 0
    size: int = 8  # of the data
    options: bytes = b""
    fragment: int = 0  # flags and offset
    source: str = ""
    destination: str = ""
    mac: str = NODE_MAC
    back: bool = False  # from west's pod to east's


class Row(NamedTuple):
    description: str
    before: Sequence[Send]
    send: Send
    seen: str  # how it left its node and entered the other, and the TTL at the other pod


ROWS = [
    *(Row(f"a SYN, {way}", [], Send(way), "fast fast 62") for way in WAYS),
    *(
        Row(f"of a fast connection, {way}", [Send(way)], Send(way, flags=ACK), "fast fast 62")
        for way in WAYS
    ),
    *(
        Row(
            f"its answer, {way}", [Send(way)], Send(way, flags=SYN | ACK, back=True), "fast fast 62"
        )
        for way in WAYS
    ),
    *(
        Row(
            f"of a connection that is the stack's, {way}",
            [],
            Send(way, flags=ACK),
            "stack stack 62",
        )
        for way in WAYS
    ),
    Row("an answer that is the stack's", [], Send(flags=SYN | ACK, back=True), "stack stack 62"),
    Row("a first UDP packet", [], Send(protocol="UDP"), "stack stack 62"),
    Row(
        "the first answer in UDP",
        [Send(protocol="UDP")],
        Send(protocol="UDP", back=True),
        "fast fast 62",
    ),
    Row(
        "UDP that has been seen in both directions",
        [Send(protocol="UDP"), Send(protocol="UDP", back=True)],
        Send(protocol="UDP"),
        "fast fast 62",
    ),
    Row(
        "UDP of which one direction only has been seen",
        [Send(protocol="UDP"), Send(protocol="UDP")],
        Send(protocol="UDP"),
        "stack stack 62",
    ),
    Row("another protocol", [], Send(protocol="ICMP"), "stack stack 62"),
    *(
        Row(
            f"an error about a fast connection, {way}",
            [Send(way)],
            Send(way, protocol="error", back=True),
            "stack fast 62",
        )
        for way in WAYS
    ),
    Row("an error about another", [], Send(protocol="error", back=True), "stack stack 62"),
    Row("a time to live that ends here", [], Send(ttl=1), "stack - -"),
    Row("a time to live that ends there", [], Send(ttl=2), "fast - -"),
    Row("IP options", [], Send(options=b"\x01\x01\x01\x00"), "stack stack 62"),
    Row("a fragment", [], Send(fragment=0x2000), "stack stack 62"),
    Row("what just fits into the tunnel", [], Send(size=1450 - 40), "fast fast 62"),
    Row("what does not fit into the tunnel", [], Send(size=1451 - 40), "stack - -"),
    Row("what just fits on the wire", [], Send("direct 4", size=1500 - 40), "fast fast 62"),
    Row("a source that is not the pod's", [], Send(source="10.1.0.6"), "stack - -"),
    Row("for somebody else on the link", [], Send(mac="02:00:00:00:00:09"), "stack - -"),
    Row("for a group", [], Send(destination="224.0.0.5"), "stack - -"),
    Row("for a node of the other cluster", [], Send(destination="192.0.2.2"), "stack - -"),
    Row("for nobody that is known", [], Send(destination="198.51.100.1"), "stack - -"),
    Row("for no pod there", [], Send(destination="10.2.0.8"), "fast - -"),
    Row("where no route leads", [], Send(destination="10.9.0.1"), "stack - -"),
]


class Mesh(NamedTuple):
    nodes: Mapping[str, Node]
    pods: Mapping[str, Node]
    bpffs: Mapping[str, Path]
    tunnel: Tunnel


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with two_nodes(tmp_path_factory.mktemp("vxlan"), Tunnel()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def geneve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with node() as alone:
        if not alone.do(has_geneve):
            pytest.skip("this kernel has no Geneve")
    with two_nodes(tmp_path_factory.mktemp("geneve"), Tunnel(TunnelProtocol.GENEVE)) as mesh:
        yield mesh


@contextmanager
def two_nodes(directory: Path, tunnel: Tunnel) -> Iterator[Mesh]:
    """The nodes, with tunnel and routes, and their pods; the programs are attached."""
    with ExitStack() as stack:
        bpffs = {n: stack.enter_context(mounted_bpffs(directory / n)) for n in ("east", "west")}
        nodes = {n: stack.enter_context(node()) for n in bpffs}
        pods = {n: stack.enter_context(node()) for n in bpffs}
        nodes["east"].run(f"ip link add wire type veth peer name wire netns {nodes['west'].pid}")
        for number, name in enumerate(nodes, 1):
            set_up(nodes[name], pods[name], number, tunnel)
        nodes["east"].run("ping -c1 -w5 -q 2001:db8::2")  # until the wire carries multicast
        east, west = zip(*WAYS.values(), strict=True)
        nodes["east"].do(program, bpffs["east"], EAST_SEES, east, tunnel)
        nodes["west"].do(program, bpffs["west"], WEST_SEES, west, tunnel)
        yield Mesh(nodes, pods, bpffs, tunnel)


def set_up(made: Node, pod: Node, number: int, tunnel: Tunnel) -> None:
    """A node's wire, tunnel and routes, and its pod with an address for each way."""
    other = 3 - number
    host = {1: 5, 2: 7}[number]
    made.run(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        f"ip address add 192.0.2.{number}/24 dev wire",
        f"ip address add 2001:db8::{number}/64 dev wire nodad",
        "sysctl -qw net.ipv6.conf.wire.accept_dad=0",  # routers look for neighbours from fe80::
        "ip link set wire up",
        f"ip link add {tunnel.device} type {tunnel.protocol} external dstport {tunnel.port}"
        " udp6zerocsumrx",
        f"ip link set {tunnel.device} arp off addrgenmode none mtu 1450 up",
        f"ip link add veth address {NODE_MAC} type veth peer name eth0 address {POD_MAC}"
        f" netns {pod.pid}",
        "ip link set veth up",
        "sysctl -qw net.ipv4.conf.veth.rp_filter=1",
        f"ip route add 10.{other}.0.0/16 dev {tunnel.device}",
        f"ip route add fd00:{other}::/64 dev {tunnel.device}",
        f"ip route add 10.{other + 6}.0.0/16 dev {tunnel.device} mtu 1430",
        f"ip route add fd00:{other + 6}::/64 dev {tunnel.device} mtu 1430",
        f"ip route add 10.{other + 2}.0.0/16 via 192.0.2.{other}",
        f"ip route add fd00:{other + 2}::/64 via 2001:db8::{other}",
        "ip route add unreachable 10.9.0.0/16",
    )
    # The pod's own stack has no addresses, so it answers nothing.
    pod.run("ip link set eth0 arp off addrgenmode none up")
    for n in (number, number + 2, number + 6):
        for address in (f"10.{n}.0.{host}", f"fd00:{n}::{host}"):
            made.run(
                f"ip route add {address} dev veth",
                f"ip neighbour add {address} lladdr {POD_MAC} dev veth",
            )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.description)
def test_packet_takes_the_way(row: Row, mesh: Mesh) -> None:
    for made in mesh.nodes.values():
        made.do(forget_flows)
    for send in row.before:
        travel(mesh, send)
    assert travel(mesh, row.send) == row.seen


@pytest.mark.parametrize("way", ["direct 4", "direct 6"])
def test_a_neighbour_that_is_not_resolved_is_looked_for(way: str, mesh: Mesh) -> None:
    for made in mesh.nodes.values():
        made.do(forget_flows)
    mesh.nodes["east"].run("ip neighbour flush dev wire")
    assert travel(mesh, Send(way)) == "fast fast 62"


@pytest.mark.parametrize("ecn", range(4))
@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("tunnel")])
@pytest.mark.parametrize("tunnel", ["mesh", "geneve"])
def test_what_goes_out_is_what_the_tunnel_device_would_send(
    tunnel: str, way: str, ecn: int, request: pytest.FixtureRequest
) -> None:
    mesh = request.getfixturevalue(tunnel)
    for made in mesh.nodes.values():
        made.do(forget_flows)
    before = mesh.nodes["east"].do(sent_by, mesh.tunnel.device)
    ours = on_the_wire(mesh, Send(way, tos=ecn))
    assert mesh.nodes["east"].do(sent_by, mesh.tunnel.device) == before
    theirs = on_the_wire(mesh, Send(way, tos=ecn, flags=ACK, port=40001))
    assert mesh.nodes["east"].do(sent_by, mesh.tunnel.device) == before + 1
    assert ours == theirs


def test_where_another_device_has_the_address_by_now_the_stack_takes_over(mesh: Mesh) -> None:
    west = mesh.nodes["west"]
    west.do(forget_flows)
    west.run("ip link add other type bridge", "ip link set other up")
    west.run("ip route replace 10.2.0.7 dev other")
    try:
        assert travel(mesh, Send()) == "fast - -"
    finally:
        west.run("ip link del other", "ip route replace 10.2.0.7 dev veth")


def test_what_would_be_answered_by_another_device_is_not_for_the_fast_path(mesh: Mesh) -> None:
    """A forger on the wire says to be a pod that is reached by the tunnel."""
    west = mesh.nodes["west"]
    west.do(forget_flows)
    west.run("ip route replace 10.3.0.0/16 dev cm_vxlan")
    try:
        assert travel(mesh, Send("direct 4")) == "fast stack 62"
        west.run("sysctl -qw net.ipv4.conf.wire.rp_filter=1")
        assert travel(mesh, Send("direct 4", port=40001)) == "fast - -"
    finally:
        west.run("sysctl -qw net.ipv4.conf.wire.rp_filter=0")
        west.run("ip route replace 10.3.0.0/16 via 192.0.2.1")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_too_large_for_the_pod_is_answered(way: str, mesh: Mesh) -> None:
    """Its device may have less room than what is between the nodes."""
    west = mesh.nodes["west"]
    head = 60 if ":" in WAYS[way][0] else 40
    west.run("ip link set veth mtu 1300")
    try:
        for made in mesh.nodes.values():
            made.do(forget_flows)
        assert travel(mesh, Send(way, size=1300 - head)) == "fast fast 62"
        before = west.do(too_large)
        assert travel(mesh, Send(way, flags=ACK, size=1301 - head)) == "fast - -"
        assert west.do(too_large) == before + 1
    finally:
        west.run("ip link set veth mtu 1500")


def travel(mesh: Mesh, send: Send) -> str:
    """How a frame left its node, how it entered the other, and its TTL when it came out there."""
    origin, goal = ("west", "east") if send.back else ("east", "west")
    before = {name: inspect.fast_counters(path) for name, path in mesh.bpffs.items()}
    mesh.pods[goal].do(listen, "eth0")
    mesh.pods[origin].do(emit, frame(send))
    ttl = mesh.pods[goal].do(ttl_heard, 0.3)
    after = {name: inspect.fast_counters(path) for name, path in mesh.bpffs.items()}

    def is_fast(name: str, way: Direction) -> bool:
        return after[name][way].packets > before[name][way].packets

    out = "fast" if is_fast(origin, Direction.EGRESS) else "stack"
    into = "fast" if is_fast(goal, Direction.INGRESS) else "stack" if ttl else "-"
    return f"{out} {into} {ttl or '-'}"


def on_the_wire(mesh: Mesh, send: Send) -> bytes:
    """The headers that east puts in front, without what differs from packet to packet."""
    mesh.nodes["west"].do(listen, "wire")
    mesh.pods["east"].do(emit, frame(send))
    data = mesh.nodes["west"].do(heard, 5.0)
    assert data is not None
    size = 14 + (40 if data[12:14] == b"\x86\xdd" else 20)
    ip, udp, rest = bytearray(data[14:size]), bytearray(data[size : size + 8]), data[size + 8 :]
    if size == 14 + 20:
        assert checksum(bytes(ip)) == 0
        ip[4:6] = ip[10:12] = bytes(2)  # what fragments go by, and the checksum
    udp[0:2] = bytes(2)  # the connection's
    return data[12:14] + ip + udp + rest[:8]


def frame(send: Send) -> bytes:
    """The bytes of it."""
    ends = WAYS[send.way][::-1] if send.back else WAYS[send.way]
    source, destination = (
        ip_address(a or b) for a, b in zip((send.source, send.destination), ends, strict=True)
    )
    ports = (PORT, send.port) if send.back else (send.port, PORT)
    data = TOKEN.ljust(send.size)
    match send.protocol:
        case "TCP":
            number, head = 6, struct.pack("!HHIIBBHHH", *ports, 1, 1, 0x50, send.flags, 64, 0, 0)
        case "UDP":
            number, head = 17, struct.pack("!HHHH", *ports, 8 + len(data), 0)
        case "ICMP":
            number, head = 1, struct.pack("!BBHHH", 8, 0, 0, 1, 1)
        case _:  # what it is about comes from the other pod
            about = frame(send._replace(protocol="TCP", back=not send.back))[14:]
            number, kind = (58, 1) if source.version == 6 else (1, 3)
            head = struct.pack("!BBHI", kind, 0, 0, 0) + about
    rest = head + data
    if source.version == 6:
        ip = struct.pack("!IHBB", 0x60000000 | send.tos << 20, len(rest), number, send.ttl)
        ip += source.packed + destination.packed
    else:
        first = 0x45 + len(send.options) // 4
        length = 20 + len(send.options) + len(rest)
        fragment = send.fragment or 0x4000
        parts = [first, send.tos, length, 1, fragment, send.ttl, number]
        ends4 = source.packed + destination.packed + send.options
        ip = struct.pack("!BBHHHBBH", *parts, 0) + ends4
        ip = struct.pack("!BBHHHBBH", *parts, checksum(ip)) + ends4
    macs = bytes.fromhex((send.mac + POD_MAC).replace(":", ""))
    return macs + struct.pack("!H", 0x86DD if source.version == 6 else 0x0800) + ip + rest


def checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# What follows runs on a node, or in a pod.

_datapath: Datapath
_wire: socket.socket


def program(
    bpffs: Path,
    ipcache: Mapping[str, tuple[int, str | None]],
    pods: Sequence[str],
    tunnel: Tunnel,
) -> None:
    """Attach to everything, with this ipcache and these pods behind `veth`."""
    global _datapath  # noqa: PLW0603 - the node's process is the object
    _datapath = Datapath.open(bpffs, SMALL, tunnel=tunnel, fast_path=True)
    asyncio.run(_fill(ipcache, pods))
    device, wire = map(socket.if_nametoindex, (tunnel.device, "wire"))
    _datapath.attach_tunnel(device)
    _fast().set_media({device: Medium.TUNNEL, wire: Medium.UNDERLAY})
    _datapath.settle()


async def _fill(ipcache: Mapping[str, tuple[int, str | None]], pods: Sequence[str]) -> None:
    entries = {
        ip_network(prefix): IpcacheEntry(
            IdentityId(identity), ClusterId(identity >> 16), ip_address(to) if to else None
        )
        for prefix, (identity, to) in ipcache.items()
    }
    assert await IpcacheTarget(_datapath).apply(entries, ()) == {}
    veth = socket.if_nametoindex("veth")
    rows = dict.fromkeys(map(ip_address, pods), Pod(veth, veth, POD_MAC, NODE_MAC))
    target = PodTarget(_fast())
    assert await target.actual() == {}
    assert await target.apply(rows, ()) == {}
    assert await target.actual() == rows


def _fast() -> FastPath:
    assert _datapath.fast is not None
    return _datapath.fast


def forget_flows() -> None:
    """As if there had been no connections."""
    flows = _fast().flows
    keys, _ = flows.read()
    flows.delete(keys)


def sent_by(device: str) -> int:
    """How many packets a device has sent."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (fields,) = (line.split() for line in lines if line.lstrip().startswith(f"{device}:"))
    return int(fields[10])  # the second of what is sent


def has_geneve() -> bool:
    """Whether this kernel has it."""
    command = "ip link add made type geneve external"
    return subprocess.run(command.split(), check=False, capture_output=True).returncode == 0


def too_large() -> int:
    """The packets that this node has refused as too large for a device, of both families."""
    shown = subprocess.run(["nstat", "-asz"], check=True, capture_output=True, text=True).stdout
    counters = dict(line.split()[:2] for line in shown.splitlines()[1:])
    return int(counters["IpFragFails"]) + int(counters["Ip6InTooBigErrors"])


def listen(device: str) -> None:
    """Look at what comes to a device."""
    global _wire  # noqa: PLW0603
    _wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x3))
    _wire.bind((device, 0))


def emit(made: bytes) -> None:
    """Send a frame from the pod's device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        wire.send(made)


def heard(seconds: float) -> bytes | None:
    """The frame that came, if one did."""
    deadline = time.monotonic() + seconds
    with _wire:
        while (left := deadline - time.monotonic()) > 0:
            _wire.settimeout(left)
            try:
                data, (_, _, kind, *_) = _wire.recvfrom(2048)
            except TimeoutError:
                break
            if TOKEN in data and kind != socket.PACKET_OUTGOING:
                return data
    return None


def ttl_heard(seconds: float) -> int | None:
    """The TTL of the frame that came to the pod, if one did."""
    data = heard(seconds)
    if data is None:
        return None
    assert data[:12] == bytes.fromhex((POD_MAC + NODE_MAC).replace(":", ""))
    return data[14 + 7] if data[12:14] == b"\x86\xdd" else data[14 + 8]

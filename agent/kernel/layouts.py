"""
The Python twins of the structs in `bpf/lib/types.h`, and how rows are written into them.

`bpf/tests/test_layouts.py` holds each twin to the BTF of the compiled objects: names, offsets,
sizes. Packing is written for bulk: 100,000 backends in some tenths of a second.
"""

from __future__ import annotations

import enum
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from agent.rows import IpcacheEntry, Pod
from clustermesh.model import ClusterId, IdentityId, IPAddress, IPNetwork, L4Address, Protocol


class Layout(struct.Struct):
    """A C struct by its fields, in order; `x` is padding. A nested struct is its bytes."""

    def __init__(self, name: str, **fields: str) -> None:
        super().__init__("=" + "".join(fields.values()))
        self.name = name
        self.fields = fields


# Ports are in network order, and packed as such.
ENDPOINT: Final = Layout("endpoint", ip="16s", port="H", pad="2x")
FRONTEND_KEY: Final = Layout("frontend_key", ip="16s", port="H", protocol="B", pad="x")
NEAR: Final = 5
"""How many backends are in the frontend itself."""
FRONTEND: Final = Layout(
    "frontend", id="I", generation="I", count="I", near=f"{NEAR * ENDPOINT.size}s"
)
BACKEND_KEY: Final = Layout("backend_key", frontend="I", generation="I", slot="I")
CONNECTION_KEY: Final = Layout("connection_key", cookie="Q", backend="20s", pad="4x")
SESSION_KEY: Final = Layout("session_key", cookie="Q", frontend="20s", pad="4x")
SESSION: Final = Layout("session", backend="20s", frontend="I", generation="I")
IPCACHE_KEY: Final = Layout("ipcache_key", prefixlen="I", ip="16s")
IPCACHE_ENTRY: Final = Layout("ipcache_entry", node="16s", identity="I", cluster_id="I")
TRAFFIC: Final = Layout("traffic", packets="Q", bytes="Q")
POD_KEY: Final = Layout("pod_key", ip="16s")
POD: Final = Layout("pod", port="I", device="I", mac="6s", gateway="6s")
FLOW_KEY: Final = Layout(
    "flow_key", pod="16s", remote="16s", pod_port="H", remote_port="H", protocol="B", pad="3x"
)
FLOW_STATE: Final = Layout("flow_state", medium="I", seen_out="B", seen_in="B", pad="2x")

LAYOUTS: Final = (
    ENDPOINT,
    FRONTEND_KEY,
    FRONTEND,
    BACKEND_KEY,
    CONNECTION_KEY,
    SESSION_KEY,
    SESSION,
    IPCACHE_KEY,
    IPCACHE_ENTRY,
    TRAFFIC,
    POD_KEY,
    POD,
    FLOW_KEY,
    FLOW_STATE,
)


class DropReason(enum.IntEnum):
    """`enum drop_reason`, which says what each of them means."""

    NO_BACKEND = 1
    STALE_FRONTEND = 2
    NOT_IP = 3
    TRUNCATED = 4
    NO_TUNNEL = 5
    MULTICAST = 6
    TUNNEL_KEY = 7
    SPOOFED_SOURCE = 8
    FOREIGN_IDENTITY = 9
    TRANSIT = 10
    PLAIN_TEXT = 11


class Direction(enum.IntEnum):
    """The key of the traffic counters."""

    EGRESS = 0
    INGRESS = 1


class Medium(enum.IntEnum):
    """What carries packets between nodes: what a device is to the fast path."""

    TUNNEL = 1
    UNDERLAY = 2


_MAPPED: Final = bytes(10) + b"\xff\xff"
_MAPPED_BITS: Final = 96
_NOWHERE: Final = bytes(16)

_NUMBER_OF: Final = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_PROTOCOL_OF: Final = {number: protocol for protocol, number in _NUMBER_OF.items()}

BALANCED: Final = frozenset(_NUMBER_OF)
"""The protocols of which the kernel shows us the socket calls. SCTP is none of them."""


def pack_ip(ip: IPAddress) -> bytes:
    """16 bytes, IPv4 mapped."""
    return _MAPPED + ip.packed if ip.version == 4 else ip.packed


def unpack_ip(raw: bytes) -> IPAddress:
    """The inverse of `pack_ip`."""
    return IPv4Address(raw[12:]) if raw.startswith(_MAPPED) else IPv6Address(raw)


def pack_endpoint(address: L4Address) -> bytes:
    """A backend. Its protocol is the frontend's."""
    return ENDPOINT.pack(pack_ip(address.ip), socket.htons(address.port))


def unpack_endpoint(ip: bytes, port: int, protocol: Protocol) -> L4Address:
    """A backend, of the fields of an ENDPOINT."""
    return L4Address(unpack_ip(ip), socket.ntohs(port), protocol)


def pack_frontend_key(address: L4Address) -> bytes:
    """
    A frontend.

    Raises:
        KeyError: the protocol is none that is balanced.
    """
    number = _NUMBER_OF[address.protocol]
    return FRONTEND_KEY.pack(pack_ip(address.ip), socket.htons(address.port), number)


def unpack_frontend_key(ip: bytes, port: int, number: int) -> L4Address:
    """A frontend, of the fields of a FRONTEND_KEY."""
    return L4Address(unpack_ip(ip), socket.ntohs(port), _PROTOCOL_OF[number])


def pack_ipcache_key(network: IPNetwork) -> bytes:
    """A prefix; an IPv4 one is 96 bits longer than it is written."""
    bits = network.prefixlen + (_MAPPED_BITS if network.version == 4 else 0)
    return IPCACHE_KEY.pack(bits, pack_ip(network.network_address))


def unpack_ipcache_key(bits: int, ip: bytes) -> IPNetwork:
    """A prefix, of the fields of an IPCACHE_KEY."""
    address = unpack_ip(ip)
    if address.version == 4 and bits >= _MAPPED_BITS:
        return IPv4Network((address.packed, bits - _MAPPED_BITS))
    return IPv6Network((ip, bits))


def pack_ipcache_entry(entry: IpcacheEntry) -> bytes:
    """Who, and behind which node."""
    node = _NOWHERE if entry.node_ip is None else pack_ip(entry.node_ip)
    return IPCACHE_ENTRY.pack(node, entry.identity, entry.cluster_id)


def unpack_ipcache_entry(node: bytes, identity: int, cluster_id: int) -> IpcacheEntry:
    """An entry, of the fields of an IPCACHE_ENTRY."""
    node_ip = None if node == _NOWHERE else unpack_ip(node)
    return IpcacheEntry(IdentityId(identity), ClusterId(cluster_id), node_ip)


def pack_pod(pod: Pod) -> bytes:
    """Where a pod is."""
    return POD.pack(pod.port, pod.device, _pack_mac(pod.mac), _pack_mac(pod.gateway))


def unpack_pod(port: int, device: int, mac: bytes, gateway: bytes) -> Pod:
    """Where a pod is, of the fields of a POD."""
    return Pod(port, device, mac.hex(":"), gateway.hex(":"))


def _pack_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))

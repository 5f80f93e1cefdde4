"""
WireGuard devices as generic netlink messages: packing, and reading back.

Written by hand for the reason that route_messages.py gives: a thousand peers are programmed at
once, and pyroute2 spends milliseconds on each.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import islice
from socket import AF_INET, AF_INET6, htons
from typing import Final

import msgspec

from agent.kernel.route_messages import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, attribute, attributes
from agent.rows import UdpAddress
from clustermesh.model import IPNetwork

from .driver import Device, PeerChange, PeerConfig, PeerState

FAMILY: Final = "wireguard"

# linux/genetlink.h
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_NESTED: Final = 0x8000

# linux/wireguard.h
_VERSION: Final = 1
_GET_DEVICE, _SET_DEVICE = 0, 1
_DEVICE_IFNAME, _DEVICE_PRIVATE_KEY, _DEVICE_LISTEN_PORT, _DEVICE_PEERS = 2, 3, 6, 8
_PEER_PUBLIC_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE = 1, 3, 4, 5
_PEER_HANDSHAKE, _PEER_RX, _PEER_TX, _PEER_ALLOWED_IPS = 6, 7, 8, 9
_PEER_REMOVE, _PEER_REPLACE_ALLOWED_IPS = 1, 2
_ALLOWED_FAMILY, _ALLOWED_ADDRESS, _ALLOWED_LENGTH = 1, 2, 3

_HEADER: Final = struct.Struct("=IHHIIBBH")  # nlmsghdr, genlmsghdr
_GENERIC: Final = struct.Struct("=BBH")
_U16: Final = struct.Struct("=H")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_TIME: Final = struct.Struct("=qq")  # struct __kernel_timespec
_SOCKADDR4: Final = struct.Struct("=HH4s8x")
_SOCKADDR6: Final = struct.Struct("=HHI16sI")

_ROOM: Final = 32768
"""Bytes of peers in one message: an attribute, which they all are in, has room for 65535."""

_ALLOWED_AT_ONCE: Final = 500


def pack_find_family(sequence: int) -> bytes:
    """Ask for the number of the family that WireGuard has."""
    name = attribute(_FAMILY_NAME, FAMILY.encode() + b"\0")
    return _pack(_CONTROL, NLM_F_REQUEST | NLM_F_ACK, sequence, _GET_FAMILY, name)


def parse_family(payload: memoryview) -> int:
    """The number that was asked for."""
    return int(_U16.unpack_from(attributes(payload[_GENERIC.size :])[_FAMILY_ID])[0])


def pack_get(family: int, device: str, sequence: int) -> bytes:
    """Ask how a device is. The answer may come in several messages."""
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_DUMP
    return _pack(family, flags, sequence, _GET_DEVICE, _name(device))


def pack_configure(family: int, device: str, private_key: bytes, port: int, sequence: int) -> bytes:
    """Give a device its key and port."""
    body = (
        _name(device)
        + attribute(_DEVICE_PRIVATE_KEY, private_key)
        + attribute(_DEVICE_LISTEN_PORT, _U16.pack(port))
    )
    return _pack(family, NLM_F_REQUEST | NLM_F_ACK, sequence, _SET_DEVICE, body)


def pack_peers(family: int, device: str, peers: list[bytes], sequence: int) -> bytes:
    """Put and delete peers, of `pack_peer`."""
    body = _name(device) + attribute(_DEVICE_PEERS | _NESTED, b"".join(peers))
    return _pack(family, NLM_F_REQUEST | NLM_F_ACK, sequence, _SET_DEVICE, body)


def pack_peer(public_key: str, change: PeerChange | None) -> list[bytes]:
    """A peer as it shall be, None to remove it; in several pieces if it has many prefixes."""
    key = attribute(_PEER_PUBLIC_KEY, base64.b64decode(public_key))
    if change is None:
        return [_nested(key + attribute(_PEER_FLAGS, _U32.pack(_PEER_REMOVE)))]
    first = key + attribute(_PEER_KEEPALIVE, _U16.pack(change.keepalive))
    if change.only:
        first += attribute(_PEER_FLAGS, _U32.pack(_PEER_REPLACE_ALLOWED_IPS))
    if change.endpoint is not None:
        first += attribute(_PEER_ENDPOINT, _pack_endpoint(change.endpoint))
    rest = iter(change.allowed_ips)
    pieces = [_nested(first + _allowed_ips(islice(rest, _ALLOWED_AT_ONCE)))]
    while more := list(islice(rest, _ALLOWED_AT_ONCE)):
        pieces.append(_nested(key + _allowed_ips(more)))
    return pieces


def in_messages(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The pieces of peers, as many together as fit into a message."""
    fitting: list[bytes] = []
    size = 0
    for piece in pieces:
        if fitting and size + len(piece) > _ROOM:
            yield fitting
            fitting, size = [], 0
        fitting.append(piece)
        size += len(piece)
    if fitting:
        yield fitting


class _Peer(msgspec.Struct):
    """A peer, of which the kernel may tell in several messages."""

    found: dict[int, memoryview]
    allowed: list[IPNetwork]

    def state(self) -> PeerState:
        get = self.found.get
        self.allowed.sort(key=lambda n: (n.version, int(n.network_address), n.prefixlen))
        config = PeerConfig(
            _parse_endpoint(get(_PEER_ENDPOINT)),
            tuple(self.allowed),
            _number(_U16, get(_PEER_KEEPALIVE)),
        )
        time = get(_PEER_HANDSHAKE)
        seconds, nanoseconds = _TIME.unpack_from(time) if time is not None else (0, 0)
        return PeerState(
            config,
            seconds + nanoseconds / 1e9,
            _number(_U64, get(_PEER_RX)),
            _number(_U64, get(_PEER_TX)),
        )


def parse_device(payloads: Iterable[memoryview]) -> Device:
    """A device, of all the messages of an answer."""
    device: dict[int, memoryview] = {}
    peers: dict[str, _Peer] = {}
    for payload in payloads:
        found = attributes(payload[_GENERIC.size :])
        device = found | device  # the first message has most
        for nested in _items(found.get(_DEVICE_PEERS)):
            fields = attributes(nested)
            key = base64.b64encode(fields[_PEER_PUBLIC_KEY]).decode()
            peer = peers.setdefault(key, _Peer(fields, []))
            peer.allowed += map(_parse_allowed, _items(fields.get(_PEER_ALLOWED_IPS)))
    return Device(
        bytes(device.get(_DEVICE_PRIVATE_KEY, b"")),
        _number(_U16, device.get(_DEVICE_LISTEN_PORT)),
        {key: peer.state() for key, peer in peers.items()},
    )


def _pack(family: int, flags: int, sequence: int, command: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, family, flags, sequence, 0, command, _VERSION, 0) + body


def _name(device: str) -> bytes:
    return attribute(_DEVICE_IFNAME, device.encode() + b"\0")


def _nested(content: bytes) -> bytes:
    return attribute(_NESTED, content)  # an item of a list: what kind it is does not matter


def _allowed_ips(networks: Iterable[IPNetwork]) -> bytes:
    return attribute(
        _PEER_ALLOWED_IPS | _NESTED,
        b"".join(
            _nested(
                attribute(_ALLOWED_FAMILY, _U16.pack(AF_INET if n.version == 4 else AF_INET6))
                + attribute(_ALLOWED_ADDRESS, n.network_address.packed)
                + attribute(_ALLOWED_LENGTH, bytes([n.prefixlen]))
            )
            for n in networks
        ),
    )


def _pack_endpoint(endpoint: UdpAddress) -> bytes:
    port = htons(endpoint.port)
    if endpoint.ip.version == 4:
        return _SOCKADDR4.pack(AF_INET, port, endpoint.ip.packed)
    return _SOCKADDR6.pack(AF_INET6, port, 0, endpoint.ip.packed, 0)


def _parse_endpoint(value: memoryview | None) -> UdpAddress | None:
    if value is None:
        return None
    port = int.from_bytes(value[2:4], "big")
    if _U16.unpack_from(value)[0] == AF_INET:
        return UdpAddress(IPv4Address(bytes(value[4:8])), port)
    return UdpAddress(IPv6Address(bytes(value[8:24])), port)


def _parse_allowed(nested: memoryview) -> IPNetwork:
    fields = attributes(nested)
    return ip_network((bytes(fields[_ALLOWED_ADDRESS]), fields[_ALLOWED_LENGTH][0]))


def _items(view: memoryview | None) -> Iterator[memoryview]:
    """The content of each attribute in a list."""
    at = 0
    while view is not None and at + 4 <= len(view):
        length = _U16.unpack_from(view, at)[0]
        yield view[at + 4 : at + length]
        at += (length + 3) & ~3


def _number(layout: struct.Struct, value: memoryview | None) -> int:
    return 0 if value is None else int(layout.unpack_from(value)[0])

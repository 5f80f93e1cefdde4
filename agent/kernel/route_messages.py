"""
Routes as rtnetlink messages: packing, and reading back.

Written by hand because bulk is the point: pyroute2 spends 715 µs on a route, most of it in building
and taking apart generic attributes, and 50,000 of them would take half a minute. What a route has
besides its prefix is the same for every prefix of a node, so that part is packed once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6
from typing import Final

import msgspec

from clustermesh.model import IPAddress, IPNetwork

# STABLE API: what is ours in a node's kernel is known by these, also to the next version of the
# agent and to uninstall.
TABLE: Final = 1995
PROTOCOL: Final = 195
METRIC: Final = 1995  # so that a stranger's route in our table is neither replaced nor deleted

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 0x10, 0x200
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_NLMSGERR_ATTR_MSG = 1

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE = 32, 33
RT_TABLE_COMPAT: Final = 252  # rtm_table of every table above 255
_RTN_UNICAST = 1
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_TABLE, _RTA_VIA = 8, 15, 18
_RTAX_MTU = 2
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_FRA_TABLE = 15

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_ROUTE: Final = struct.Struct("=IHHIIBBBBBBBBI")  # header and struct rtmsg
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_LINK: Final = struct.Struct("=BBHiII")  # struct ifinfomsg
_RULE: Final = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr
_ATTRIBUTE: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=I")
_S32: Final = struct.Struct("=i")


class KernelRoute(msgspec.Struct, frozen=True, gc=False):
    """What the kernel knows of one of our routes, besides its prefix."""

    device: str
    gateway: IPAddress | None = None
    source: IPAddress | None = None  # what a socket of the node's own sends from
    mtu: int | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """One netlink message."""

    type: int
    flags: int
    sequence: int
    port: int  # who caused it, in a notification
    payload: memoryview


class ParsedRoute(msgspec.Struct, frozen=True, gc=False):
    """A route as the kernel tells it."""

    prefix: IPNetwork
    table: int
    protocol: int
    metric: int
    device: int  # 0 for a route over several
    gateway: IPAddress | None
    source: IPAddress | None
    mtu: int | None


class ParsedLink(msgspec.Struct, frozen=True, gc=False):
    """A device, in a notification."""

    index: int
    name: str
    flags: int
    mtu: int


def pack_put(prefix: IPNetwork, route: KernelRoute, device: int, sequence: int) -> bytes:
    """Add `prefix`, or replace what we have for it."""
    family, destination = _destination(prefix)
    rest = _rest(route.gateway, route.source, route.mtu, device, family)
    return (
        _ROUTE.pack(
            _ROUTE.size + len(destination) + len(rest),
            RTM_NEWROUTE,
            NLM_F_REQUEST | _NLM_F_CREATE | _NLM_F_REPLACE,
            sequence,
            0,
            family,
            prefix.prefixlen,
            0,
            0,
            0,
            PROTOCOL,
            _RT_SCOPE_UNIVERSE if route.gateway else _RT_SCOPE_LINK,
            _RTN_UNICAST,
            0,
        )
        + destination
        + rest
    )


def pack_delete(prefix: IPNetwork, sequence: int) -> bytes:
    """Delete what we have for `prefix`, wherever it leads. A stranger's route does not match."""
    family, destination = _destination(prefix)
    rest = attribute(_RTA_TABLE, _U32.pack(TABLE)) + attribute(_RTA_PRIORITY, _U32.pack(METRIC))
    length = _ROUTE.size + len(destination) + len(rest)
    head = (length, RTM_DELROUTE, NLM_F_REQUEST, sequence, 0)
    body = (family, prefix.prefixlen, 0, 0, 0, PROTOCOL, _RT_SCOPE_NOWHERE, 0, 0)
    return _ROUTE.pack(*head, *body) + destination + rest


def pack_dump(family: int, sequence: int) -> bytes:
    """Ask for the routes of our table. Kernels before 4.20 answer with those of every table."""
    rest = attribute(_RTA_TABLE, _U32.pack(TABLE))
    head = (_ROUTE.size + len(rest), RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
    return _ROUTE.pack(*head, family, 0, 0, 0, 0, 0, 0, 0, 0) + rest


def want_ack(message: bytes) -> bytes:
    """The same message, but the kernel also says so when it worked."""
    length, kind, flags, sequence, port = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind, flags | NLM_F_ACK, sequence, port) + message[_HEADER.size :]


def messages(data: bytes) -> Iterator[Message]:
    """The messages of what was received at once."""
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, kind, flags, sequence, port = _HEADER.unpack_from(view, at)
        yield Message(kind, flags, sequence, port, view[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def parse_error(message: Message) -> OSError | None:
    """What an acknowledgement says, in the kernel's own words where it has any."""
    code = -_S32.unpack_from(message.payload)[0]
    if code == 0:
        return None
    said = ""
    if message.flags & NLM_F_ACK_TLVS:
        found = attributes(message.payload[_S32.size + _HEADER.size :])
        said = bytes(found.get(_NLMSGERR_ATTR_MSG, b"")).rstrip(b"\0").decode()
    return OSError(code, said or os.strerror(code))


def parse_route(payload: memoryview) -> ParsedRoute | None:
    """A route; None for one of another family, or one that is not a plain unicast route."""
    family, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(payload)
    if family not in {AF_INET, AF_INET6} or kind != _RTN_UNICAST:
        return None
    found = attributes(payload[_RTMSG.size :])
    address = bytes(found.get(_RTA_DST, bytes(4 if family == AF_INET else 16)))
    number = int.from_bytes(address, "big")
    metrics = attributes(found[_RTA_METRICS]) if _RTA_METRICS in found else {}
    via = found[_RTA_VIA][2:] if _RTA_VIA in found else found.get(_RTA_GATEWAY)
    return ParsedRoute(
        IPv4Network((number, length)) if family == AF_INET else IPv6Network((number, length)),
        _number(found.get(_RTA_TABLE)) or table,
        protocol,
        _number(found.get(_RTA_PRIORITY)) or 0,
        _number(found.get(_RTA_OIF)) or 0,
        _address(via),
        _address(found.get(_RTA_PREFSRC)),
        _number(metrics.get(_RTAX_MTU)),
    )


def parse_link(payload: memoryview) -> ParsedLink:
    """A device, in a notification."""
    _, _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload[_LINK.size :])
    name = bytes(found[_IFLA_IFNAME]).rstrip(b"\0").decode()
    return ParsedLink(index, name, flags, _number(found.get(_IFLA_MTU)) or 0)


def parse_rule_table(payload: memoryview) -> int | None:
    """The table that a rule has looked up."""
    return _number(attributes(payload[_RULE.size :]).get(_FRA_TABLE))


def _destination(prefix: IPNetwork) -> tuple[int, bytes]:
    family = AF_INET if prefix.version == 4 else AF_INET6
    return family, attribute(_RTA_DST, prefix.network_address.packed)


@lru_cache(maxsize=16384)
def _rest(
    gateway: IPAddress | None, source: IPAddress | None, mtu: int | None, device: int, family: int
) -> bytes:
    parts = [
        attribute(_RTA_TABLE, _U32.pack(TABLE)),
        attribute(_RTA_PRIORITY, _U32.pack(METRIC)),
        attribute(_RTA_OIF, _U32.pack(device)),
    ]
    if gateway is not None:
        other = AF_INET if gateway.version == 4 else AF_INET6
        if other == family:
            parts.append(attribute(_RTA_GATEWAY, gateway.packed))
        else:  # an IPv4 prefix behind an IPv6 address
            parts.append(attribute(_RTA_VIA, struct.pack("=H", other) + gateway.packed))
    if source is not None:
        parts.append(attribute(_RTA_PREFSRC, source.packed))
    if mtu is not None:
        parts.append(attribute(_RTA_METRICS, attribute(_RTAX_MTU, _U32.pack(mtu))))
    return b"".join(parts)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded to where the next one begins."""
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def attributes(view: memoryview) -> dict[int, memoryview]:
    """The attributes in `view` by kind; of several of one kind the last."""
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, at)
        found[kind & 0x3FFF] = view[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3 or _ATTRIBUTE.size
    return found


def _number(value: memoryview | None) -> int | None:
    return None if value is None else int(_U32.unpack_from(value)[0])


@lru_cache(maxsize=16384)
def _ip(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _address(value: memoryview | None) -> IPAddress | None:
    return None if value is None else _ip(bytes(value))

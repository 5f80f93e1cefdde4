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

from agent.rows import RouteKey
from clustermesh.model import IPAddress, IPNetwork

# STABLE API: what is ours in a node's kernel is known by these, also to the next version of the
# agent and to uninstall.
TABLE: Final = 1995  # to pods, for everybody
POD_TABLE: Final = 1996  # to nodes' own addresses, for what pods send
TABLES: Final = (TABLE, POD_TABLE)
PROTOCOL: Final = 195
METRIC: Final = 1995  # so that a stranger's route in our table is neither replaced nor deleted
BACKSTOP_METRIC: Final = METRIC + 1  # what counts where the route of that metric is missing

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR, NLM_F_ACK_TLVS = 0x10, 0x200
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_NLMSGERR_ATTR_MSG = 1

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE = 32, 33
RT_TABLE_COMPAT: Final = 252  # rtm_table of every table above 255
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 8, 9, 15, 18
_RTAX_MTU = 2
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 4, 5, 18, 37
_IFLA_INFO_KIND = 1
_FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 10, 15, 16

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_ROUTE: Final = struct.Struct("=IHHIIBBBBBBBBI")  # header and struct rtmsg
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_LINK: Final = struct.Struct("=BBHiII")  # struct ifinfomsg
_RULE: Final = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg
_HOP: Final = struct.Struct("=HBBi")  # struct rtnexthop
_ATTRIBUTE: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=I")
_S32: Final = struct.Struct("=i")


class KernelRoute(msgspec.Struct, frozen=True, gc=False):
    """What the kernel knows of one of our routes, besides its prefix."""

    device: str  # empty: nothing can get there, which the sender is told
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
    device: int  # 0 for a route over several, or to nowhere
    is_unreachable: bool
    gateway: IPAddress | None
    source: IPAddress | None
    mtu: int | None

    @property
    def key(self) -> RouteKey:
        """The key of a route in one of our tables."""
        return RouteKey(self.prefix, self.table == POD_TABLE)


class ParsedLink(msgspec.Struct, frozen=True, gc=False):
    """A device, in a notification."""

    index: int
    name: str
    flags: int
    mtu: int
    kind: str  # veth, bridge, …; empty for hardware
    is_pair_here: bool  # a veth whose other end is in this network namespace too


class ParsedRule(msgspec.Struct, frozen=True, gc=False):
    """A routing rule."""

    table: int  # that it has looked up, or 0
    has_mark: bool  # it is for packets with a mark, or without one


class ParsedAddress(msgspec.Struct, frozen=True, gc=False):
    """An address of a device, in a notification."""

    device: int
    ip: IPAddress
    is_global: bool


class ParsedDefaultRoute(msgspec.Struct, frozen=True, gc=False):
    """Where everything else goes, by one of the tables."""

    table: int
    devices: tuple[int, ...]


def pack_put(
    key: RouteKey, route: KernelRoute, device: int, sequence: int, metric: int = METRIC
) -> bytes:
    """Add the route `key`, or replace what we have for it. Without a `device` it leads nowhere."""
    family, destination = _destination(key.prefix)
    rest = _priority(metric) + _rest(_table(key), route, device, family)
    is_on_link = device and not route.gateway
    return (
        _ROUTE.pack(
            _ROUTE.size + len(destination) + len(rest),
            RTM_NEWROUTE,
            NLM_F_REQUEST | _NLM_F_CREATE | _NLM_F_REPLACE,
            sequence,
            0,
            family,
            key.prefix.prefixlen,
            0,
            0,
            0,
            PROTOCOL,
            _RT_SCOPE_LINK if is_on_link else _RT_SCOPE_UNIVERSE,
            _RTN_UNICAST if device else _RTN_UNREACHABLE,
            0,
        )
        + destination
        + rest
    )


def pack_delete(key: RouteKey, sequence: int, metric: int = METRIC) -> bytes:
    """Delete what we have for `key`, wherever it leads. A stranger's route does not match."""
    family, destination = _destination(key.prefix)
    rest = attribute(_RTA_TABLE, _U32.pack(_table(key))) + _priority(metric)
    length = _ROUTE.size + len(destination) + len(rest)
    head = (length, RTM_DELROUTE, NLM_F_REQUEST, sequence, 0)
    body = (family, key.prefix.prefixlen, 0, 0, 0, PROTOCOL, _RT_SCOPE_NOWHERE, 0, 0)
    return _ROUTE.pack(*head, *body) + destination + rest


def pack_dump(family: int, table: int, sequence: int) -> bytes:
    """Ask for the routes of a table. Kernels before 4.20 answer with those of every table."""
    rest = attribute(_RTA_TABLE, _U32.pack(table))
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
    """A route; None for one of another family, or one of a kind that we never make."""
    family, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(payload)
    if family not in {AF_INET, AF_INET6} or kind not in {_RTN_UNICAST, _RTN_UNREACHABLE}:
        return None
    is_unreachable = kind == _RTN_UNREACHABLE  # of IPv6 it is at the loopback device
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
        0 if is_unreachable else _number(found.get(_RTA_OIF)) or 0,
        is_unreachable,
        _address(via),
        _address(found.get(_RTA_PREFSRC)),
        _number(metrics.get(_RTAX_MTU)),
    )


def parse_link(payload: memoryview) -> ParsedLink:
    """A device, in a notification."""
    _, _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload[_LINK.size :])
    about = attributes(found[_IFLA_LINKINFO]) if _IFLA_LINKINFO in found else {}
    kind = _text(about.get(_IFLA_INFO_KIND))
    is_pair_here = kind == "veth" and _IFLA_LINK in found and _IFLA_LINK_NETNSID not in found
    mtu = _number(found.get(_IFLA_MTU)) or 0
    return ParsedLink(index, _text(found[_IFLA_IFNAME]), flags, mtu, kind, is_pair_here)


def parse_address(payload: memoryview) -> ParsedAddress:
    """An address of a device, in a notification."""
    _, _, _, scope, device = _ADDRESS.unpack_from(payload)
    found = attributes(payload[_ADDRESS.size :])
    own = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]  # at a point-to-point link the other end's
    return ParsedAddress(device, _ip(bytes(own)), scope == _RT_SCOPE_UNIVERSE)


def parse_default_route(payload: memoryview) -> ParsedDefaultRoute | None:
    """A default route that leads somewhere; None for any other route."""
    _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(payload)
    if length or kind != _RTN_UNICAST:
        return None
    found = attributes(payload[_RTMSG.size :])
    devices = [_number(found.get(_RTA_OIF))]
    hops, at = found.get(_RTA_MULTIPATH, memoryview(b"")), 0
    while at + _HOP.size <= len(hops):
        size, _, _, device = _HOP.unpack_from(hops, at)
        devices.append(device)
        at += (size + 3) & ~3 or _HOP.size
    return ParsedDefaultRoute(
        _number(found.get(_RTA_TABLE)) or table, tuple(device for device in devices if device)
    )


def parse_rule(payload: memoryview) -> ParsedRule:
    """A rule, in a notification."""
    found = attributes(payload[_RULE.size :])
    return ParsedRule(
        _number(found.get(_FRA_TABLE)) or 0, _FRA_FWMARK in found or _FRA_FWMASK in found
    )


def _table(key: RouteKey) -> int:
    return POD_TABLE if key.from_pods else TABLE


def _destination(prefix: IPNetwork) -> tuple[int, bytes]:
    family = AF_INET if prefix.version == 4 else AF_INET6
    return family, attribute(_RTA_DST, prefix.network_address.packed)


@lru_cache(maxsize=2)
def _priority(metric: int) -> bytes:
    return attribute(_RTA_PRIORITY, _U32.pack(metric))


@lru_cache(maxsize=16384)
def _rest(table: int, route: KernelRoute, device: int, family: int) -> bytes:
    gateway, source, mtu = route.gateway, route.source, route.mtu
    parts = [attribute(_RTA_TABLE, _U32.pack(table))]
    if device:
        parts.append(attribute(_RTA_OIF, _U32.pack(device)))
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


def _text(value: memoryview | None) -> str:
    return "" if value is None else bytes(value).rstrip(b"\0").decode()


def _number(value: memoryview | None) -> int | None:
    return None if value is None else int(_U32.unpack_from(value)[0])


@lru_cache(maxsize=16384)
def _ip(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _address(value: memoryview | None) -> IPAddress | None:
    return None if value is None else _ip(bytes(value))

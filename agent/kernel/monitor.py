"""
What others do to our routes and rules and to the devices, as it happens.

A socket filter keeps out what is none of our business before it is queued: our own writes (by port
id), and other tables, so that a BGP daemon which loads a full table into main costs us nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

import msgspec

from agent.rows import RouteKey
from clustermesh.model import IPAddress

from .route_messages import (
    RT_TABLE_COMPAT,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    TABLES,
    messages,
    parse_address,
    parse_link,
    parse_route,
    parse_rule,
)
from .routes import open_netlink

# linux/rtnetlink.h, linux/if.h, asm-generic/socket.h, linux/bpf_common.h
_RTMGRP_LINK, _RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x1, 0x40, 0x400
_IFF_UP = 0x1
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTMGRP_IPV4_RULE, _RTMGRP_IPV6_RULE = 0x80, 0x40000
_SO_ATTACH_FILTER = 26
_RECEIVE: Final = 1 << 16
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
_TYPE, _PORT, _LENGTH_BYTE, _TABLE_BYTE = 4, 12, 17, 20  # offsets in a route message


class RouteChange(msgspec.Struct, frozen=True, gc=False):
    """Somebody added, replaced or deleted a route in one of our tables."""

    key: RouteKey


class LinkChange(msgspec.Struct, frozen=True, gc=False):
    """A device appeared, changed or (not `is_up`) went down or away."""

    name: str
    index: int
    is_up: bool
    mtu: int


class AddressChange(msgspec.Struct, frozen=True, gc=False):
    """A device has come to have a global address, or has it no more."""

    device: int
    ip: IPAddress
    is_there: bool


class RuleDeleted(msgspec.Struct, frozen=True, gc=False):
    """One of our tables may be no longer looked up."""


class MarkRuleChange(msgspec.Struct, frozen=True, gc=False):
    """A rule that goes by the marks of packets has come or gone."""


class Overrun(msgspec.Struct, frozen=True, gc=False):
    """The kernel had more to say than we could take: anything may have changed."""


Change: TypeAlias = (
    RouteChange | RuleDeleted | MarkRuleChange | LinkChange | AddressChange | Overrun
)


class RouteMonitor:
    """Notifications of the network namespace of the thread that opened this, from then on."""

    def __init__(self, ignore_port: int) -> None:
        """
        Args:
            ignore_port: the port id of `RouteSocket`, whose writes are not reported.
        """
        self._socket = open_netlink(
            *(_RTMGRP_LINK, _RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE),
            *(_RTMGRP_IPV4_RULE, _RTMGRP_IPV6_RULE),
            *(_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR),
        )
        attach_filter(self._socket, _filter(ignore_port))

    def close(self) -> None:
        """Hear nothing any more."""
        self._socket.close()

    def drain(self) -> list[Change]:
        """What has happened until now, so that `changes` does not tell it any more."""
        found: list[Change] = []
        while True:
            try:
                found += _parse(self._socket.recv(_RECEIVE))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found.append(Overrun())

    async def changes(self) -> AsyncIterator[list[Change]]:
        """Batches of changes, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._socket, _RECEIVE)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield [Overrun()]
                continue
            if batch := list(_parse(data)):
                yield batch


def _parse(data: bytes) -> list[Change]:
    found: list[Change] = []
    for message in messages(data):
        if message.type in {RTM_NEWROUTE, RTM_DELROUTE}:
            route = parse_route(message.payload)
            if route and route.table in TABLES and not route.is_unreachable:
                found.append(RouteChange(route.key))
        elif message.type in {RTM_NEWLINK, RTM_DELLINK}:
            link = parse_link(message.payload)
            is_up = message.type == RTM_NEWLINK and bool(link.flags & _IFF_UP)
            found.append(LinkChange(link.name, link.index, is_up, link.mtu))
        elif message.type in {RTM_NEWADDR, RTM_DELADDR}:
            address = parse_address(message.payload)
            if address.is_global:
                is_there = message.type == RTM_NEWADDR
                found.append(AddressChange(address.device, address.ip, is_there))
        elif message.type in {RTM_NEWRULE, RTM_DELRULE}:
            rule = parse_rule(message.payload)
            if message.type == RTM_DELRULE and rule.table in TABLES:
                found.append(RuleDeleted())
            elif rule.has_mark:
                found.append(MarkRuleChange())
    return found


def _filter(ignore_port: int) -> list[tuple[int, int, int, int]]:
    """Classic BPF: routes of a table above 255 that `ignore_port` did not cause, and the rest."""
    return [
        (_LOAD_HALF, 0, 0, _TYPE),  # loads are big endian, netlink is in the host's order
        (_JUMP_EQUAL, 2, 0, socket.htons(RTM_NEWROUTE)),
        (_JUMP_EQUAL, 1, 0, socket.htons(RTM_DELROUTE)),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_LOAD_BYTE, 0, 0, _TABLE_BYTE),
        (_JUMP_EQUAL, 0, 2, RT_TABLE_COMPAT),
        (_LOAD_WORD, 0, 0, _PORT),
        (_JUMP_EQUAL, 0, 1, socket.htonl(ignore_port)),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
    ]


def default_routes_only() -> list[tuple[int, int, int, int]]:
    """Classic BPF: of all routes the default ones, and whatever is none."""
    return [
        (_LOAD_HALF, 0, 0, _TYPE),
        (_JUMP_EQUAL, 2, 0, socket.htons(RTM_NEWROUTE)),
        (_JUMP_EQUAL, 1, 0, socket.htons(RTM_DELROUTE)),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_LOAD_BYTE, 0, 0, _LENGTH_BYTE),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]


_INSTRUCTION: Final = struct.Struct("=HBBI")
_PROGRAM: Final = struct.Struct("@HP")  # struct sock_fprog


def attach_filter(to: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    """Have a program of classic BPF say what a socket hears: code, jumps and constant each."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*step) for step in program))
    fprog = _PROGRAM.pack(len(program), ctypes.addressof(code))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

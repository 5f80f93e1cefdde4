"""
The devices of this node, as they come and go, and which of them are known to lead off it.

Told by the kernel, one message at a time: pods come and go all day, and reading all devices of a
large node takes longer than a packet needs to leave by a new one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Final

import msgspec

from agent.rows import Device

from .monitor import attach_filter, default_routes_only
from .route_messages import (
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    Message,
    messages,
    parse_address,
    parse_default_route,
    parse_error,
    parse_link,
)
from .routes import open_netlink

# linux/rtnetlink.h, linux/if.h
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE = 18, 22, 26
_IFF_LOOPBACK: Final = 0x8
_RT_TABLE_MAIN: Final = 254
_RECEIVE: Final = 1 << 18
_READ_TRIES: Final = 20

_REQUEST: Final = struct.Struct("=IHHII16x")  # header, and a body of any kind that says nothing
_DUMPS: Final = (_RTM_GETLINK, _RTM_GETADDR, _RTM_GETROUTE)

_WIRES: Final = frozenset({"", "bond", "team", "vlan"})
"""
Kinds of devices that have nothing but a network behind them: hardware has no kind.

No CNI puts pods behind one that has an address or a default route. Of other kinds it may: a bridge,
or a veth of which a default route of its own table makes a proxy's packets come back to the host.
"""


class _Seen(msgspec.Struct):
    """What has been told of a device since it is there."""

    name: str
    kind: str = ""
    is_inside: bool = False  # the loopback device, or one end of a pair of which both are here
    has_address: bool = False
    has_default_route: bool = False  # in some table
    has_main_route: bool = False  # a default route in the table `main`

    def row(self) -> Device:
        """
        What follows from it.

        A device that was an uplink once remains one for as long as it is followed: a route that
        comes back later must not find it open.
        """
        is_wire = self.kind in _WIRES and (self.has_address or self.has_default_route)
        return Device(self.name, is_uplink=self.has_main_route or is_wire)


async def read_devices() -> Mapping[int, Device]:
    """
    The devices of the calling thread's network namespace, by index.

    Those that no packet leaves the node by are not among them.
    """
    return _rows(await _read())


async def device_changes() -> AsyncGenerator[Mapping[int, Device], None]:
    """Yield what `read_devices` gives, at once and whenever it is something else."""
    groups = (
        *(_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR),
        *(_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE),
    )
    with open_netlink(*groups) as opened:
        attach_filter(opened, default_routes_only())
        yielded: Mapping[int, Device] | None = None
        seen = await _read()
        while True:
            rows = _rows(seen)
            if rows != yielded:
                yield (yielded := rows)
            try:
                data = await asyncio.get_running_loop().sock_recv(opened, _RECEIVE)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                seen = await _read()  # anything may have changed
                continue
            for message in messages(data):
                _take(seen, message)


def _rows(seen: Mapping[int, _Seen]) -> Mapping[int, Device]:
    return {index: device.row() for index, device in seen.items() if not device.is_inside}


async def _read() -> dict[int, _Seen]:
    """
    All that there is now. What changes meanwhile is told to who listens already.

    While devices come and go a reading may leave one out that stays: it is repeated. After some
    tries it has to do, rather than that nothing is guarded.
    """
    with open_netlink() as opened:
        for number in range(_READ_TRIES):
            seen: dict[int, _Seen] = {}
            is_whole = True
            for kind in _DUMPS:
                flags = NLM_F_REQUEST | NLM_F_DUMP
                opened.send(_REQUEST.pack(_REQUEST.size, kind, flags, number, 0))
                async for message in _answers(opened):
                    is_whole = is_whole and not message.flags & NLM_F_DUMP_INTR
                    _take(seen, message)
            if is_whole:
                break
    return seen


async def _answers(opened: socket.socket) -> AsyncIterator[Message]:
    """The messages of a dump; the last one only ends it."""
    while True:
        data = await asyncio.get_running_loop().sock_recv(opened, _RECEIVE)
        for message in messages(data):
            if message.type == NLMSG_ERROR and (error := parse_error(message)):
                raise error
            yield message
            if message.type == NLMSG_DONE:
                return


def _take(seen: dict[int, _Seen], message: Message) -> None:
    """Take over what a message tells."""
    if message.type in {RTM_NEWLINK, RTM_DELLINK} and message.payload[0] != socket.AF_UNSPEC:
        return  # of a port of a bridge, as such
    if message.type == RTM_NEWLINK:
        link = parse_link(message.payload)
        known = seen.setdefault(link.index, _Seen(link.name))
        known.name, known.kind = link.name, link.kind
        known.is_inside = bool(link.flags & _IFF_LOOPBACK) or link.is_pair_here
    elif message.type == RTM_DELLINK:
        seen.pop(parse_link(message.payload).index, None)
    elif message.type == RTM_NEWADDR:
        address = parse_address(message.payload)
        if address.is_global and address.device in seen:
            seen[address.device].has_address = True
    elif message.type == RTM_NEWROUTE:
        for device, table in _default_routes(message):
            if device in seen:
                seen[device].has_default_route = True
                seen[device].has_main_route |= table == _RT_TABLE_MAIN


def _default_routes(message: Message) -> Iterator[tuple[int, int]]:
    """Device and table of a default route; one over several devices counts for each."""
    found = parse_default_route(message.payload)
    if found is not None:
        yield from ((device, found.table) for device in found.devices)

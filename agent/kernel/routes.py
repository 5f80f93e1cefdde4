"""
The route tables that are ours, in bulk.

A request that fails is always answered, one that works only on demand. So a hundred routes go to
the kernel in one send, only the last asks for an answer, and whatever else comes back is an error
that names its row by its sequence number: 11 µs a route, all told.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, islice, product
from pathlib import Path
from typing import Final, TypeAlias

from agent.rows import RouteKey
from clustermesh.model import IPNetwork

from .route_messages import (
    METRIC,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    PROTOCOL,
    RTM_NEWROUTE,
    TABLES,
    KernelRoute,
    messages,
    pack_delete,
    pack_dump,
    pack_put,
    parse_error,
    parse_route,
    want_ack,
)

_BATCH: Final = 100
_RECEIVE: Final = 1 << 18
_DUMP_TRIES: Final = 20

# linux/netlink.h, which Python's socket module does not have
SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
SO_RCVBUFFORCE = 33

_Request: TypeAlias = tuple[RouteKey, KernelRoute | None]


class RouteSocket:
    """
    Routes of our tables and protocol, in the network namespace of the thread that opened this.

    Used from one event loop, one call at a time.
    """

    def __init__(self, metric: int = METRIC) -> None:
        """
        Args:
            metric: of the routes. Of two to the same prefix the lower counts, while it is there.
        """
        self._metric = metric
        self._socket = open_netlink()
        self._sequence = 1
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:  # an older kernel: terser errors, longer dumps
                continue

    @property
    def port(self) -> int:
        """The netlink port id that notifications of our own changes carry."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close it; the routes stay."""
        self._socket.close()

    async def apply(
        self, puts: Mapping[RouteKey, KernelRoute], deletes: Collection[RouteKey]
    ) -> dict[RouteKey, OSError]:
        """Put and delete; the failures by route. A route that is not there may be deleted."""
        failed: dict[RouteKey, OSError] = {}
        devices: dict[str, int] = {}
        requests: Iterable[_Request] = chain(((d, None) for d in deletes), puts.items())
        rest = iter(requests)
        while batch := list(islice(rest, _BATCH)):
            await self._apply(batch, devices, failed)
            await asyncio.sleep(0)
        return failed

    async def _apply(
        self, batch: list[_Request], devices: dict[str, int], failed: dict[RouteKey, OSError]
    ) -> None:
        packed: list[bytes] = []
        sent: list[_Request] = []
        first = self._take(len(batch))
        for key, route in batch:
            number = first + len(packed)
            try:
                packed.append(
                    pack_delete(key, number, self._metric)
                    if route is None
                    else pack_put(key, route, _index(route.device, devices), number, self._metric)
                )
                sent.append((key, route))
            except OSError as error:
                failed[key] = error
        if not packed:
            return
        packed[-1] = want_ack(packed[-1])
        self._socket.send(b"".join(packed))
        last = first + len(packed) - 1
        while True:
            # Answers to requests before `first` are left over from a call that was cancelled.
            for message in messages(await self._receive()):
                if message.type != NLMSG_ERROR or message.sequence < first:
                    continue
                key, route = sent[message.sequence - first]
                failure = parse_error(message)
                if failure and not (route is None and failure.errno == errno.ESRCH):
                    failed[key] = _explain(failure, key.prefix, route)
                if message.sequence == last:
                    return

    async def dump(self) -> dict[RouteKey, KernelRoute]:
        """
        The routes of ours that are there.

        Raises:
            OSError: EAGAIN when a table changes faster than it can be read.
        """
        found: dict[RouteKey, KernelRoute] = {}
        families = (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,)
        for family, table in product(families, TABLES):
            for _ in range(_DUMP_TRIES):
                routes = await self._dump(family, table)
                if routes is not None:
                    found |= routes
                    break
            else:
                raise OSError(errno.EAGAIN, "the route table keeps changing while it is read")
        return found

    async def _dump(self, family: int, table: int) -> dict[RouteKey, KernelRoute] | None:
        sequence = self._take(1)
        self._socket.send(pack_dump(family, table, sequence))
        found: dict[RouteKey, KernelRoute] = {}
        names: dict[int, str] = {}
        whole = True
        while True:
            for message in messages(await self._receive()):
                if message.sequence != sequence:
                    continue
                whole = whole and not message.flags & NLM_F_DUMP_INTR
                if message.type in {NLMSG_DONE, NLMSG_ERROR}:
                    error = parse_error(message) if message.type == NLMSG_ERROR else None
                    if error and error.errno != errno.ENOENT:  # a table that nothing is in
                        raise error
                    return found if whole else None
                route = parse_route(message.payload) if message.type == RTM_NEWROUTE else None
                if route and (route.table, route.protocol, route.metric) == (
                    table,
                    PROTOCOL,
                    self._metric,
                ):
                    device = "" if route.is_unreachable else _name(route.device, names)
                    found[route.key] = KernelRoute(device, route.gateway, route.source, route.mtu)
            await asyncio.sleep(0)

    def _take(self, count: int) -> int:
        """The first of `count` sequence numbers, of which there are 32 bits."""
        first = self._sequence if self._sequence + count < 1 << 32 else 1
        self._sequence = first + count
        return first

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, _RECEIVE)


def open_netlink(*groups: int, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """
    A non-blocking netlink socket with room for a burst.

    Args:
        groups: the multicast groups to hear (linux/rtnetlink.h RTMGRP_*).
        protocol: of netlink; rtnetlink by default.
    """
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)  # as much as there may be
    made.bind((0, sum(groups)))
    return made


def has_ipv6() -> bool:
    """Whether this network namespace has IPv6 at all."""
    return Path("/proc/sys/net/ipv6").exists()


def _index(device: str, known: dict[str, int]) -> int:
    if not device:
        return 0
    if device not in known:
        try:
            known[device] = socket.if_nametoindex(device)
        except OSError:
            raise OSError(errno.ENODEV, f"there is no device {device}") from None
    return known[device]


def _name(index: int, known: dict[int, str]) -> str:
    if index not in known:
        try:
            known[index] = socket.if_indextoname(index)
        except OSError:  # a route over several devices, or one that is going away
            known[index] = ""
    return known[index]


def _explain(error: OSError, prefix: IPNetwork, route: KernelRoute | None) -> OSError:
    if route is None:
        return error
    if route.gateway and route.gateway.version < prefix.version:
        return OSError(
            errno.EAFNOSUPPORT,
            f"node {route.gateway} has no IPv6 address, so {prefix} cannot be routed to it"
            " directly: use tunnel routing",
        )
    if route.gateway and error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL}:
        return OSError(
            errno.ENETUNREACH,
            f"node {route.gateway} is not on the segment of {route.device}, so {prefix} cannot be"
            f" routed to it directly ({error.strerror}): use tunnel routing",
        )
    assert error.errno is not None
    return OSError(error.errno, f"{error.strerror or os.strerror(error.errno)} ({route.device})")

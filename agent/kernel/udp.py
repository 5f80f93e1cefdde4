"""
A UDP socket that learns what became of what it sent.

A datagram that nobody takes comes back as an ICMP error, often with what was in it. Only the
socket's error queue gives that, with who says so and why, and no endpoint of asyncio reads one; so
this is a bare socket with a reader in the loop. It is never connected: one serves all peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, NamedTuple

import msgspec

from clustermesh.model import IPAddress

# From linux/in.h, linux/in6.h and linux/errqueue.h: Python does not name them.
_IP_MTU_DISCOVER: Final = 10
_IP_RECVERR: Final = 11
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_IPV6_RECVERR: Final = 25
_PMTUDISC_DO: Final = 2  # never fragment, and heed what routers say of the way
_MSG_ERRQUEUE: Final = 0x2000
_ORIGIN_LOCAL: Final = 1
_EXTENDED_ERROR: Final = struct.Struct("=I4B2I")  # struct sock_extended_err

_LARGEST: Final = 1 << 16
_AT_ONCE: Final = 64  # datagrams that are read before other tasks get a turn

HEADERS: Final = {4: 20 + 8, 6: 40 + 8}
"""Bytes of IP and UDP in front of a datagram, by IP version."""


class Options(NamedTuple):
    """How the options of a socket are numbered in an IP version."""

    level: int
    discover: int
    errors: int
    mtu: int


_OPTIONS: Final = {
    4: Options(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_RECVERR, _IP_MTU),
    6: Options(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_RECVERR, _IPV6_MTU),
}


class Returned(msgspec.Struct, frozen=True):
    """A datagram that did not arrive."""

    destination: IPAddress
    content: bytes  # as much of it as came back
    error: int  # errno
    reporter: IPAddress | None  # whose ICMP it is; None: our own kernel's
    mtu: int = 0  # with EMSGSIZE: what would fit


class UdpSocket:
    """Bound to an address of this node. What it sends is never fragmented."""

    def __init__(
        self,
        source: IPAddress,
        port: int,
        received: Callable[[bytes, IPAddress, int], None],
        returned: Callable[[Returned], None] = lambda _: None,
    ) -> None:
        """
        Args:
            port: 0 for any.
            received: is called with each datagram, its source address and port.
            returned: is called with each error that is heard of one that was sent.

        Raises:
            OSError: EADDRINUSE, EADDRNOTAVAIL.
        """
        self._source = source
        self._received = received
        self._returned = returned
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        options = _OPTIONS[source.version]
        self._options = options
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(options.level, options.discover, _PMTUDISC_DO)
            self._socket.setsockopt(options.level, options.errors, 1)
            self._socket.bind((str(source), port))
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def close(self) -> None:
        """Let go of the address."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def send(self, content: bytes, destination: IPAddress, port: int) -> None:
        """
        Send a datagram.

        Raises:
            OSError: the kernel does not take it: no route, too large, a firewall of this node.
        """
        try:
            self._socket.sendto(content, (str(destination), port))
        except OSError:
            # It may be about an earlier datagram to somebody else. What is about this one returns.
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._socket.sendto(content, (str(destination), port))

    def mtu_to(self, destination: IPAddress) -> int:
        """
        Bytes of the largest packet that the kernel would send there, headers included.

        Raises:
            OSError: there is no route.
        """
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as other:
            other.bind((str(self._source), 0))
            other.connect((str(destination), 1))  # sends nothing
            return other.getsockopt(self._options.level, self._options.mtu)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                content, (host, port, *_) = self._socket.recvfrom(_LARGEST)
            except BlockingIOError:
                break
            except OSError:
                continue  # an error of what was sent: the queue tells more
            self._received(content, ip_address(host), port)
        for _ in range(_AT_ONCE):
            try:
                content, control, _, (host, *_) = self._socket.recvmsg(
                    _LARGEST, 512, _MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
            except OSError:
                break
            for level, kind, data in control:
                if (level, kind) == (self._options.level, self._options.errors):
                    self._returned(_returned(content, ip_address(host), data))


def _returned(content: bytes, destination: IPAddress, data: bytes) -> Returned:
    error, origin, _, _, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
    reporter = None
    if origin != _ORIGIN_LOCAL:
        # After it the address of the reporter: a sockaddr_in or sockaddr_in6.
        address = data[_EXTENDED_ERROR.size :]
        packed = address[4:8] if destination.version == 4 else address[8:24]
        with contextlib.suppress(ValueError):
            reporter = ip_address(packed)
    return Returned(destination, content, error, reporter, info if error == errno.EMSGSIZE else 0)

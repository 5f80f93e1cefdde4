"""
Who sees whom, asked over plain sockets inside of a namespace.

The other end is the sandbox's echo server. The sockets are those of this process, so of none of the
node's cgroups: no program of ours is attached to them.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from clustermesh.model import IPAddress
from clustermesh.sandbox.namespace import run_inside

T = TypeVar("T")

_PORT: Final = 8080
_STREAM: Final = 8081
_PATIENCE: Final = 5.0  # seconds

_WIDE: Final = 1500
FULL: Final = {4: 1472, 6: 1452}
"""Bytes of a UDP datagram that fill a packet of 1500, which no tunnel has room for."""

# linux/in.h, linux/in6.h: level, IP_MTU_DISCOVER, IP_MTU, and what tells to send no fragments
_OPTIONS: Final = {
    4: (socket.IPPROTO_IP, 10, 14, socket.AF_INET),
    6: (socket.IPPROTO_IPV6, 23, 24, socket.AF_INET6),
}
_DO: Final = 2

_TRIES: Final = 8
"""Datagrams of a size: the first that is too large is lost, and answered with what would fit."""


def seen_by_tcp(namespace: Path, server: IPAddress, *, patience: float = _PATIENCE) -> str:
    """The address that a TCP server sees when it is called from `namespace`."""

    def body() -> str:
        with socket.create_connection((str(server), _PORT), patience) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            answer = b""
            while more := connection.recv(65536):
                answer += more
        return _client(answer.partition(b"\r\n\r\n")[2])

    return _asked(namespace, body)


def seen_by_udp(namespace: Path, server: IPAddress, size: int) -> str:
    """The address that a UDP server sees in one of several datagrams of `size` bytes of payload."""

    def body() -> str:
        family = socket.AF_INET if server.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect((str(server), _PORT))
            datagrams.settimeout(_PATIENCE / _TRIES)
            for _ in range(_TRIES):
                try:
                    datagrams.send(bytes(size))
                    return _client(datagrams.recv(65536))
                except (TimeoutError, OSError):  # EMSGSIZE tells what the node has answered
                    continue
        raise TimeoutError(f"no answer to {_TRIES} datagrams of {size} bytes")

    return _asked(namespace, body)


def told_mtu(namespace: Path, server: IPAddress) -> int:
    """The largest packet that gets to a UDP server, as a socket that sends too much is told."""

    def body() -> int:
        level, discover, mtu, family = _OPTIONS[server.version]
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.setsockopt(level, discover, _DO)
            datagrams.connect((str(server), _PORT))
            datagrams.settimeout(_PATIENCE / _TRIES)
            for _ in range(_TRIES):
                room = datagrams.getsockopt(level, mtu)
                try:
                    datagrams.send(bytes(room - _WIDE + FULL[server.version]))
                    datagrams.recv(65536)
                except (TimeoutError, OSError):  # EMSGSIZE: it is told
                    continue
                return room
        raise TimeoutError(f"no answer to {_TRIES} full datagrams")

    return _asked(namespace, body)


def sent_back(namespace: Path, server: IPAddress, size: int) -> int:
    """How many of `size` bytes a TCP server sends back, as they were sent: in full packets."""

    def body() -> int:
        received = 0
        with socket.create_connection((str(server), _STREAM), _PATIENCE) as connection:
            sender = threading.Thread(target=_send, args=(connection, size), name="sender")
            sender.start()
            while received < size and (data := connection.recv(65536)):
                received += len(data)
            sender.join()
        return received

    return _asked(namespace, body)


def _asked(namespace: Path, body: Callable[[], T]) -> T:
    try:
        return run_inside(namespace, body)
    except OSError as error:
        raise AssertionError(f"no answer: {error}") from error


def _send(connection: socket.socket, size: int) -> None:
    try:
        connection.sendall(bytes(size))
    except OSError:  # the receiver notices
        return


def _client(answer: bytes) -> str:
    return str(json.loads(answer)["client"])

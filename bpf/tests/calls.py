"""Socket calls as an application makes them, and what it sees. Run inside a `Node`."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

BACKENDS: Final = (("10.1.0.1", 8080), ("10.1.0.2", 8080), ("fd00:1::1", 8080), ("fd00:1::2", 8080))

_TIMEOUT: Final = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class Seen:
    """Who answered, and who the application believes to talk to."""

    served_by: str
    peer: str

    def __str__(self) -> str:
        return f"{self.served_by} as {self.peer}"


def call(how: str, host: str, port: int) -> str:
    """
    Talk to an address once: `Seen` in words, or the name of the error.

    Args:
        how: "TCP", "UDP connected" or "UDP". The host says the family of the socket, so
            `::ffff:10.0.0.1` is an AF_INET6 socket that talks IPv4.
    """
    talk = {"TCP": _tcp, "UDP connected": _udp_connected, "UDP": _udp}[how]
    kind = socket.SOCK_STREAM if how == "TCP" else socket.SOCK_DGRAM
    with _servers(kind) as servers, _client(host, kind) as client:
        try:
            return str(talk(client, (host, port), servers))
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def send_many(host: str, port: int, rounds: int, *, sockets: int = 1) -> list[list[str]]:
    """For each of several unconnected UDP sockets, which backends got its datagrams, in order."""
    with _servers(socket.SOCK_DGRAM) as servers, ExitStack() as stack:
        clients = [stack.enter_context(_client(host, socket.SOCK_DGRAM)) for _ in range(sockets)]
        return [
            [_udp(client, (host, port), servers).served_by for _ in range(rounds)]
            for client in clients
        ]


def keep_calling(host: str, port: int, seconds: float) -> tuple[int, list[str]]:
    """Open TCP connections as fast as possible: how many, and what went wrong."""
    done, errors = 0, []
    with _servers(socket.SOCK_STREAM) as servers:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with _client(host, socket.SOCK_STREAM) as client:
                try:
                    seen = _tcp(client, (host, port), servers)
                    if seen.peer != _text((host, port)):
                        errors.append(f"peer is {seen.peer}")
                except OSError as error:
                    errors.append(str(error))
            done += 1
    return done, errors


@dataclass(slots=True)
class _Kept:
    """A client that outlives a call into the node, and the servers that may answer it."""

    stack: ExitStack
    servers: list[socket.socket]
    client: socket.socket


_kept: list[_Kept] = []


def keep(how: str, host: str) -> None:
    """Open a socket for the functions below."""
    kind = socket.SOCK_STREAM if how == "TCP" else socket.SOCK_DGRAM
    stack = ExitStack()
    servers = stack.enter_context(_servers(kind))
    _kept.append(_Kept(stack, servers, stack.enter_context(_client(host, kind))))


def kept_connect(host: str, port: int) -> None:
    """Connect the TCP socket, and stop listening."""
    kept = _kept[-1]
    kept.client.connect((host, port))
    accepted, _ = _ready(kept.servers).accept()
    kept.stack.enter_context(accepted)
    for server in kept.servers:
        server.close()


def kept_peer() -> str:
    """Who the socket believes to talk to."""
    return _text(_kept[-1].client.getpeername())


def kept_send(host: str, port: int) -> str:
    """The backend that gets a datagram from the socket, or the name of the error."""
    try:
        return _udp(_kept[-1].client, (host, port), _kept[-1].servers).served_by
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def let_go() -> None:
    """Close the socket."""
    _kept.pop().stack.close()


def _tcp(client: socket.socket, address: tuple[str, int], servers: Iterable[socket.socket]) -> Seen:
    client.connect(address)
    server = _ready(servers)
    accepted, _ = server.accept()
    accepted.close()
    return Seen(_text(server.getsockname()), _text(client.getpeername()))


def _udp_connected(
    client: socket.socket, address: tuple[str, int], servers: Iterable[socket.socket]
) -> Seen:
    client.connect(address)
    client.send(b"ping")
    server = _echo(servers)
    _, source = client.recvfrom(64)
    assert _text(source) == _text(client.getpeername())
    return Seen(_text(server.getsockname()), _text(source))


def _udp(client: socket.socket, address: tuple[str, int], servers: Iterable[socket.socket]) -> Seen:
    client.sendto(b"ping", address)
    server = _echo(servers)
    _, source = client.recvfrom(64)
    return Seen(_text(server.getsockname()), _text(source))


def _echo(servers: Iterable[socket.socket]) -> socket.socket:
    server = _ready(servers)
    data, client = server.recvfrom(64)
    server.sendto(data, client)
    return server


def _ready(servers: Iterable[socket.socket]) -> socket.socket:
    ready, _, _ = select.select(list(servers), [], [], _TIMEOUT)
    if not ready:
        raise TimeoutError(errno.ETIMEDOUT, "no backend heard anything")
    return ready[0]


@contextmanager
def _servers(kind: socket.SocketKind) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        servers = []
        for host, port in BACKENDS:
            server = stack.enter_context(_socket(host, kind))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            if kind == socket.SOCK_STREAM:
                server.listen()
            servers.append(server)
        yield servers


@contextmanager
def _client(host: str, kind: socket.SocketKind) -> Iterator[socket.socket]:
    with _socket(host, kind) as client:
        client.settimeout(_TIMEOUT)
        yield client


def _socket(host: str, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)


def _text(address: tuple[str, int, int, int] | tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

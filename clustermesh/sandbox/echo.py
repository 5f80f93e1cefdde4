"""
The server in a pod of the sandbox: it says who it is and whom it sees.

    GET / over HTTP   one line of JSON: cluster, node, pod, client
    UDP               the same line, for every datagram
    TCP, --stream     every line comes back as it was sent, for as long as the connection lasts

Threads and plain sockets from the standard library, and nothing of ours: a hundred of these start
while one asyncio server would be importing.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
from collections.abc import Callable


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="echo", description=(__doc__ or "").strip())
    for name in ("cluster", "node", "pod"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--http", type=int, default=8080, help="TCP port (8080)")
    parser.add_argument("--udp", type=int, default=8080, help="UDP port (8080)")
    parser.add_argument("--stream", type=int, default=8081, help="TCP port (8081)")
    options = parser.parse_args()
    me = {"cluster": options.cluster, "node": options.node, "pod": options.pod}

    listener = _listen(socket.SOCK_STREAM, options.http)
    stream = _listen(socket.SOCK_STREAM, options.stream)
    datagrams = _listen(socket.SOCK_DGRAM, options.udp)
    _thread(_accept, listener, lambda accepted, client: _answer_http(accepted, client, me))
    _thread(_accept, stream, _echo_stream)
    print(f"{options.pod} of {options.node} in {options.cluster} listens", flush=True)
    _answer_udp(datagrams, me)


def _listen(kind: socket.SocketKind, port: int) -> socket.socket:
    """Both families on one socket: an IPv4 client shows up as ::ffff:ADDRESS."""
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("::", port))
        if kind is socket.SOCK_STREAM:
            made.listen(512)
    except OSError as error:
        sys.exit(f"error: port {port}: {error.strerror}")
    return made


def _accept(listener: socket.socket, serve: Callable[[socket.socket, str], None]) -> None:
    while True:
        accepted, (host, *_) = listener.accept()
        _thread(_serve, accepted, host.removeprefix("::ffff:"), serve)


def _serve(
    accepted: socket.socket, client: str, serve: Callable[[socket.socket, str], None]
) -> None:
    with accepted:
        try:
            serve(accepted, client)
        except OSError:  # the client went away
            return


def _answer_http(accepted: socket.socket, client: str, me: dict[str, str]) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        more = accepted.recv(65536)
        if not more or len(received) > 65536:
            return
        received += more
    found = received.startswith((b"GET / ", b"GET /?"))
    body = _line(me, client) if found else b'{"error": "only GET / is here"}\n'
    head = (
        f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    accepted.sendall(head.encode() + body)


def _echo_stream(accepted: socket.socket, client: str) -> None:
    del client
    while data := accepted.recv(65536):
        accepted.sendall(data)


def _answer_udp(datagrams: socket.socket, me: dict[str, str]) -> None:
    while True:
        try:
            _, client = datagrams.recvfrom(65536)
            datagrams.sendto(_line(me, client[0].removeprefix("::ffff:")), client)
        except OSError:  # an earlier answer could not be delivered
            continue


def _line(me: dict[str, str], client: str) -> bytes:
    return json.dumps({**me, "client": client}).encode() + b"\n"


def _thread(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()

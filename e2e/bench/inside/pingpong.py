"""
Times a small message there and back, over TCP and UDP, to several servers by turns.

Prints the nanoseconds as JSON, by protocol and by the name of the server.
"""

from __future__ import annotations

import argparse
import gc
import json
import socket
import sys
import time

from .server import ECHO_PORT, share_cpu

_MESSAGE = bytes(64)


def main() -> None:
    """Ask, and print how long it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("servers", nargs="+", help="NAME=ADDRESS")
    parser.add_argument("--messages", type=int, required=True, help="to each server")
    options = parser.parse_args()
    servers = dict(server.split("=") for server in options.servers)
    share_cpu()
    gc.disable()
    json.dump(
        {
            protocol: _measure(servers, kind, options.messages)
            for protocol, kind in (("TCP", socket.SOCK_STREAM), ("UDP", socket.SOCK_DGRAM))
        },
        sys.stdout,
    )


def _measure(
    servers: dict[str, str], kind: socket.SocketKind, messages: int
) -> dict[str, list[int]]:
    nanoseconds: dict[str, list[int]] = {name: [] for name in servers}
    sockets = {name: _connected(address, kind) for name, address in servers.items()}
    for number in range(-100, messages):  # the first ones warm up
        for name, connected in sockets.items():
            before = time.perf_counter_ns()
            connected.send(_MESSAGE)
            answer = connected.recv(4096)
            taken = time.perf_counter_ns() - before
            assert answer == _MESSAGE, answer
            if number >= 0:
                nanoseconds[name].append(taken)
    for connected in sockets.values():
        connected.close()
    return nanoseconds


def _connected(address: str, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(5)
    made.connect((address, ECHO_PORT))
    made.settimeout(None)
    if kind is socket.SOCK_STREAM:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


if __name__ == "__main__":
    main()

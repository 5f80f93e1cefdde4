"""
Answers what the clients of the benchmark ask, as quickly as Python can.

Clients and servers all run on one CPU: what the scheduler makes of two, and how long an idle one
sleeps, would be the larger part of what is measured.

    9000/TCP   one answer to one request, then the client closes
    9001/TCP   everything comes back, for as long as the connection lasts
    9001/UDP   every datagram comes back
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Final

REQUEST_PORT: Final = 9000
ECHO_PORT: Final = 9001


def main() -> None:
    """Serve until killed."""
    share_cpu()
    requests, echoes = (
        socket.create_server(("", REQUEST_PORT)),
        socket.create_server(("", ECHO_PORT)),
    )
    requests.listen(128)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", ECHO_PORT))
    threading.Thread(target=_echo_datagrams, args=(datagrams,), daemon=True).start()
    threading.Thread(target=_accept_echoes, args=(echoes,), daemon=True).start()
    print("ready", flush=True)
    _answer(requests)


def share_cpu() -> None:
    """Run on the one CPU from now on, threads to come included."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _answer(listener: socket.socket) -> None:
    while True:
        accepted, _ = listener.accept()
        # The client ends a connection with a reset: nothing of it stays behind in the kernel.
        with accepted, contextlib.suppress(ConnectionResetError):
            accepted.send(accepted.recv(64))
            accepted.recv(1)


def _accept_echoes(listener: socket.socket) -> None:
    while True:
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_echo, args=(accepted,), daemon=True).start()


def _echo(accepted: socket.socket) -> None:
    with accepted:
        while data := accepted.recv(4096):
            accepted.sendall(data)


def _echo_datagrams(datagrams: socket.socket) -> None:
    while True:
        data, client = datagrams.recvfrom(4096)
        datagrams.sendto(data, client)


if __name__ == "__main__":
    main()

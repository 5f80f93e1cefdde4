"""
Times connecting, one small request and its answer, in turns of three kinds.

    plain      straight to the backend, from a cgroup without load balancing
    direct     straight to the backend, from a cgroup with it
    service    through a global service, another one each time

A socket belongs to the cgroup in which it was created, so one process can have sockets of both: it
makes a batch of them in each, and then connects them by turns. Prints the nanoseconds as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import socket
import struct
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeAlias

from .server import share_cpu

_BATCH: Final = 64
_REQUEST: Final = b"0123456789abcdef"
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: leave nothing behind in the kernel

Address: TypeAlias = tuple[str, int]


def main() -> None:
    """Call, and print how long it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", required=True, help="ADDRESS:PORT")
    parser.add_argument("--first-service", required=True, help="ADDRESS:PORT of the first of them")
    parser.add_argument("--services", type=int, required=True, help="on consecutive addresses")
    parser.add_argument("--balanced", type=Path, required=True, help="cgroup with load balancing")
    parser.add_argument("--unbalanced", type=Path, required=True, help="cgroup without it")
    parser.add_argument("--calls", type=int, required=True, help="of each kind")
    options = parser.parse_args()
    backend, first = _address(options.backend), _address(options.first_service)
    chosen = random.Random(1)
    ip = IPv4Address(first[0])

    def service() -> Address:
        return str(ip + chosen.randrange(options.services)), first[1]

    _enter(options.unbalanced)
    _check_unreachable(service())
    nanoseconds: dict[str, list[int]] = {"plain": [], "direct": [], "service": []}
    share_cpu()
    gc.disable()
    for start in range(-_BATCH, options.calls, _BATCH):  # the first batch warms up
        _enter(options.unbalanced)
        plain = [_socket() for _ in range(_BATCH)]
        _enter(options.balanced)
        turns = [
            turn
            for one in plain
            for turn in (
                ("plain", one, backend),
                ("direct", _socket(), backend),
                ("service", _socket(), service()),
            )
        ]
        for kind, one, address in turns:
            taken = _call(one, address)
            if start >= 0:
                nanoseconds[kind].append(taken)
    json.dump(nanoseconds, sys.stdout)


def _call(one: socket.socket, address: Address) -> int:
    before = time.perf_counter_ns()
    one.connect(address)
    one.send(_REQUEST)
    answer = one.recv(64)
    taken = time.perf_counter_ns() - before
    one.close()
    assert answer == _REQUEST, answer
    return taken


def _check_unreachable(service: Address) -> None:
    """Without load balancing nothing answers at a service: else the comparison is worth nothing."""
    with _socket() as one:
        one.settimeout(0.5)
        try:
            one.connect(service)
        except OSError:
            return
    raise SystemExit(f"{service} answers without load balancing")


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return made


def _enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main()

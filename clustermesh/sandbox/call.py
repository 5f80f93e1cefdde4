"""
Call a service many times and say who answered: the client to `echo.py`.

    python -m clustermesh.sandbox.call tcp 10.101.0.1 80 --count 100
    python -m clustermesh.sandbox.call udp fd00:110:1::1 80 -o json
    python -m clustermesh.sandbox.call stream 10.101.0.1 81 --seconds 10 --every 0.005

`stream` holds one connection and sends a line every so often; the connection counts as broken when
none comes back for the timeout. All stop early on SIGTERM, and report. The exit code is 1 when
anything failed. Standard library only, since it is started inside of pods by the dozen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any


def main() -> None:
    """Call, report, exit."""
    parser = argparse.ArgumentParser(prog="call", description=(__doc__ or "").strip())
    parser.add_argument("mode", choices=["tcp", "udp", "stream"])
    parser.add_argument("host", help="an IPv4 or IPv6 address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1, help="calls to make (1)")
    parser.add_argument("--every", type=float, default=0.0, help="seconds between calls (0)")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for each call (2)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to stream (10)")
    parser.add_argument("--connected", action="store_true", help="UDP with connect()")
    parser.add_argument("-o", dest="output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # see `_is_told_to_stop`
    if options.mode == "stream":
        report = stream(
            options.host, options.port, options.seconds, options.every or 0.01, options.timeout
        )
    else:
        report = call(options)
    print(json.dumps(report) if options.output == "json" else _text(report))
    sys.exit(1 if report["failed"] or not report["answered"] else 0)


def call(options: argparse.Namespace) -> dict[str, Any]:
    """
    Make the calls, one after another.

    The report: `calls`, `answered`, `failed` are counts; `pods` counts answers by
    cluster/node/pod, `clients` by the client's address as the server saw it, `errors` by message;
    `longest_gap` is the most seconds between two answers; `last_failure` is when the last call that
    failed did so, on this machine's monotonic clock, or null.
    """
    pods: Counter[str] = Counter()
    clients: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    last = time.monotonic()
    longest, last_failure = 0.0, None
    for number in range(options.count):
        if number and _is_told_to_stop(options.every):
            break
        try:
            answer = _tcp(options) if options.mode == "tcp" else _udp(options)
            pods[f"{answer['cluster']}/{answer['node']}/{answer['pod']}"] += 1
            clients[answer["client"]] += 1
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        except (OSError, ValueError, KeyError) as error:
            errors[str(error) or type(error).__name__] += 1
            last_failure = time.monotonic()
    return {
        "calls": pods.total() + errors.total(),
        "answered": pods.total(),
        "failed": errors.total(),
        "pods": dict(sorted(pods.items())),
        "clients": dict(sorted(clients.items())),
        "errors": dict(errors),
        "longest_gap": round(max(longest, time.monotonic() - last), 4),
        "last_failure": last_failure,
    }


def stream(host: str, port: int, seconds: float, every: float, timeout: float) -> dict[str, Any]:
    """
    Send a line every `every` seconds over one connection.

    The report: `calls` lines were sent and `answered` came back; `failed` is the difference;
    `longest_gap` is the most seconds that a line took; `broken` says what ended the connection
    early, or is null.
    """
    sent: list[float] = []  # when, by number
    longest, answered, broken = 0.0, 0, None
    stop = threading.Event()  # no more is sent
    try:
        connection = socket.create_connection((host, port), timeout)
    except OSError as error:
        return {"calls": 0, "answered": 0, "failed": 1, "longest_gap": 0.0, "broken": str(error)}
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = (connection, sent, stop, seconds, every)
        sender = threading.Thread(target=_send_lines, args=lines)
        sender.start()
        while broken is None:
            try:
                received = connection.recv(65536)
            except TimeoutError:
                if answered < len(sent):
                    broken = f"no answer for {timeout:g} s"
                continue
            except OSError as error:
                broken = str(error)
                continue
            if not received:
                broken = None if stop.is_set() else "closed by the server"
                break
            for _ in range(received.count(b"\n")):
                longest = max(longest, time.monotonic() - sent[answered])
                answered += 1
        stop.set()
        sender.join()
    return {
        "calls": len(sent),
        "answered": answered,
        "failed": len(sent) - answered,
        "longest_gap": round(longest, 4),
        "broken": broken,
    }


def _send_lines(
    connection: socket.socket,
    sent: list[float],
    stop: threading.Event,
    seconds: float,
    every: float,
) -> None:
    start = time.monotonic()
    # The server closes when it has sent everything back: that is how the reader knows.
    with contextlib.suppress(OSError):  # the reader sees why
        while not stop.is_set() and time.monotonic() - start < seconds:
            sent.append(time.monotonic())
            connection.sendall(b"%d\n" % len(sent))
            if _is_told_to_stop(max(0.0, start + len(sent) * every - time.monotonic())):
                break
        stop.set()
        connection.shutdown(socket.SHUT_WR)


def _is_told_to_stop(seconds: float) -> bool:
    """
    Wait for SIGTERM, which all threads block; whether it came in that time.

    A handler that sets an event could come while its own thread holds that event's lock.
    """
    return signal.sigtimedwait({signal.SIGTERM}, seconds) is not None


def _tcp(options: argparse.Namespace) -> dict[str, str]:
    with socket.create_connection((options.host, options.port), options.timeout) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
        received = b""
        while more := connection.recv(65536):
            received += more
    answer: dict[str, str] = json.loads(received.partition(b"\r\n\r\n")[2])
    return answer


def _udp(options: argparse.Namespace) -> dict[str, str]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    service = (options.host, options.port)
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(options.timeout)
        if options.connected:
            datagrams.connect(service)
            datagrams.send(b"who?")
        else:
            datagrams.sendto(b"who?", service)
        received, sender = datagrams.recvfrom(65536)
    if sender[:2] != service:
        raise ValueError(f"the answer came from {sender[0]}:{sender[1]}, not from the service")
    answer: dict[str, str] = json.loads(received)
    return answer


def _text(report: dict[str, Any]) -> str:
    lines = [f"{report['answered']} of {report['calls']} calls were answered"]
    lines += [f"  {count:5} by {pod}" for pod, count in report.get("pods", {}).items()]
    lines += [f"  {count:5} seen as {ip}" for ip, count in report.get("clients", {}).items()]
    lines += [f"  {count:5} failed: {error}" for error, count in report.get("errors", {}).items()]
    if report.get("broken"):
        lines.append(f"  the connection broke: {report['broken']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Socket calls in, what the application sees out."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.kernel import bpf, layouts, links
from agent.kernel import datapath as datapath_module
from agent.kernel.bpf import Map
from agent.kernel.datapath import Datapath
from agent.kernel.layouts import DropReason
from agent.targets.frontends import FrontendTarget

from .calls import call, keep, keep_calling, kept_send, let_go, send_many
from .lab import Node, address

pytestmark = [pytest.mark.kernel, pytest.mark.vm]

WEB4 = {"10.96.0.1:80": ["10.1.0.1:8080"]}
WEB6 = {"[fd00:96::1]:80": ["[fd00:1::1]:8080"]}
EMPTY: Mapping[str, Sequence[str]] = {"10.96.0.1:80": [], "[fd00:96::1]:80": []}

V4 = ("10.96.0.1", 80)
V6 = ("fd00:96::1", 80)
MAPPED = ("::ffff:10.96.0.1", 80)


class Row(NamedTuple):
    description: str
    services: Mapping[str, Sequence[str]]  # each for TCP and for UDP
    how: str
    to: tuple[str, int]
    seen: str


SEEN4 = "10.1.0.1:8080 as 10.96.0.1:80"
SEEN6 = "[fd00:1::1]:8080 as [fd00:96::1]:80"
SEEN_MAPPED = "10.1.0.1:8080 as [::ffff:10.96.0.1]:80"

ROWS = [
    Row("TCP over IPv4", WEB4, "TCP", V4, SEEN4),
    Row("UDP over IPv4", WEB4, "UDP", V4, SEEN4),
    Row("connected UDP over IPv4", WEB4, "UDP connected", V4, SEEN4),
    Row("TCP over IPv6", WEB6, "TCP", V6, SEEN6),
    Row("UDP over IPv6", WEB6, "UDP", V6, SEEN6),
    Row("connected UDP over IPv6", WEB6, "UDP connected", V6, SEEN6),
    Row("TCP over IPv4, AF_INET6 socket", WEB4, "TCP", MAPPED, SEEN_MAPPED),
    Row("UDP over IPv4, AF_INET6 socket", WEB4, "UDP", MAPPED, SEEN_MAPPED),
    Row("connected UDP, AF_INET6 socket", WEB4, "UDP connected", MAPPED, SEEN_MAPPED),
    Row("TCP, no backend", EMPTY, "TCP", V4, "ECONNREFUSED"),
    Row("TCP over IPv6, no backend", EMPTY, "TCP", V6, "ECONNREFUSED"),
    Row("UDP, no backend", EMPTY, "UDP", V4, "ECONNREFUSED"),
    Row("UDP over IPv6, no backend", EMPTY, "UDP", V6, "ECONNREFUSED"),
    Row("connected UDP, no backend", EMPTY, "UDP connected", V4, "ECONNREFUSED"),
    Row("TCP to no frontend", WEB4, "TCP", ("10.1.0.2", 8080), "10.1.0.2:8080 as 10.1.0.2:8080"),
    Row("UDP to no frontend", WEB4, "UDP", ("10.1.0.2", 8080), "10.1.0.2:8080 as 10.1.0.2:8080"),
    Row("a backend, directly", WEB4, "TCP", ("10.1.0.1", 8080), "10.1.0.1:8080 as 10.1.0.1:8080"),
    Row("another port", WEB4, "TCP", ("10.96.0.1", 81), "ENETUNREACH"),
    Row("another family", WEB4, "TCP", V6, "ENETUNREACH"),
]


async def write(datapath: Datapath, services: Mapping[str, Sequence[str]]) -> None:
    target = FrontendTarget(datapath)
    puts = {
        address(f"{frontend}/{protocol}"): tuple(address(f"{b}/{protocol}") for b in backends)
        for frontend, backends in services.items()
        for protocol in ("TCP", "UDP")
    }
    assert await target.apply(puts, set(await target.actual()) - puts.keys()) == {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.description)
async def test_socket_call(row: Row, datapath: Datapath, cgroup: Path, pod: Node) -> None:
    await write(datapath, row.services)
    datapath.attach_sockets(cgroup)

    assert pod.do(call, row.how, *row.to) == row.seen

    refused = {DropReason.NO_BACKEND: 1} if row.seen == "ECONNREFUSED" else {}
    assert {reason: n for reason, n in datapath.drops().items() if n} == refused


async def test_a_protocol_that_has_no_frontend_there_is_left_alone(
    datapath: Datapath, cgroup: Path, pod: Node
) -> None:
    target = FrontendTarget(datapath)
    await target.apply({address("10.96.0.1:80/TCP"): (address("10.1.0.1:8080/TCP"),)}, ())
    datapath.attach_sockets(cgroup)
    assert pod.do(call, "UDP", *V4) == "ENETUNREACH"


@pytest.mark.parametrize("each", [1, layouts.NEAR], ids=["in the frontend", "beyond it"])
async def test_connections_are_spread_over_all_backends(
    datapath: Datapath, cgroup: Path, pod: Node, each: int
) -> None:
    await write(datapath, {"10.96.0.1:80": ["10.1.0.1:8080"] * each + ["10.1.0.2:8080"] * each})
    datapath.attach_sockets(cgroup)
    seen = {pod.do(call, "TCP", *V4) for _ in range(60)}
    assert seen == {"10.1.0.1:8080 as 10.96.0.1:80", "10.1.0.2:8080 as 10.96.0.1:80"}


async def test_datagrams_of_a_socket_stay_with_one_backend_while_it_is_in_the_service(
    datapath: Datapath, cgroup: Path, pod: Node
) -> None:
    both = ["10.1.0.1:8080", "10.1.0.2:8080"]
    await write(datapath, {"10.96.0.1:80": both})
    datapath.attach_sockets(cgroup)

    by_socket = pod.do(send_many, *V4, rounds=5, sockets=30)

    assert all(len(set(backends)) == 1 for backends in by_socket)
    assert {backends[0] for backends in by_socket} == set(both)


@pytest.mark.parametrize("others", [0, layouts.NEAR], ids=["in the frontend", "beyond it"])
async def test_a_service_that_changes_moves_only_the_sockets_of_a_lost_backend(
    datapath: Datapath, cgroup: Path, pod: Node, others: int
) -> None:
    everywhere = {"10.96.0.1:80": ["10.1.0.1:8080", "10.1.0.2:8080"]}
    await write(datapath, everywhere)
    datapath.attach_sockets(cgroup)
    pod.do(keep, "UDP", V4[0])

    first = pod.do(kept_send, *V4)
    other = next(b for b in everywhere["10.96.0.1:80"] if b != first)
    # The same backends in other slots.
    await write(datapath, {"10.96.0.1:80": [other] * (others + 1) + [first]})
    assert [pod.do(kept_send, *V4) for _ in range(10)] == [first] * 10
    await write(datapath, {"10.96.0.1:80": [other]})
    assert [pod.do(kept_send, *V4) for _ in range(10)] == [other] * 10
    await write(datapath, {"10.96.0.1:80": []})
    assert pod.do(kept_send, *V4) == "ECONNREFUSED"
    pod.do(let_go)


async def test_a_service_that_is_made_again_after_a_restart_is_another_one(
    datapath: Datapath, cgroup: Path, pod: Node
) -> None:
    await write(datapath, {"10.96.0.1:80": ["10.1.0.1:8080"]})
    datapath.attach_sockets(cgroup)
    pod.do(keep, "UDP", V4[0])
    assert pod.do(kept_send, *V4) == "10.1.0.1:8080"

    await write(datapath, {})  # `write` is a new target each time, as after a restart
    await write(datapath, {"10.96.0.1:80": ["10.1.0.2:8080"]})

    assert pod.do(kept_send, *V4) == "10.1.0.2:8080"
    pod.do(let_go)


async def test_no_call_fails_while_the_service_changes(
    datapath: Datapath, cgroup: Path, pod: Node
) -> None:
    target = FrontendTarget(datapath)
    one, two = (address(f"10.1.0.{n}:8080/TCP") for n in (1, 2))
    service = address("10.96.0.1:80/TCP")
    await target.apply({service: (one,)}, ())
    datapath.attach_sockets(cgroup)

    calls = pod.start(keep_calling, *V4, seconds=2.0)
    deadline, changes = time.monotonic() + 2.0, 0
    while time.monotonic() < deadline:
        await target.apply({service: ((one,), (one, two), (two, one))[changes % 3]}, ())
        changes += 1

    done, errors = calls()
    assert errors == []
    assert done > 100
    assert changes > 100
    assert set(datapath.drops().values()) == {0}


async def test_a_slot_that_is_missing_is_refused_and_counted(
    datapath: Datapath, cgroup: Path, pod: Node
) -> None:
    many = 1000
    await write(datapath, {"10.96.0.1:80": ["10.1.0.1:8080"] * layouts.NEAR})
    key = layouts.pack_frontend_key(address("10.96.0.1:80/TCP"))
    value = datapath.frontends.get(key)
    assert value
    id_, generation, _, near = layouts.FRONTEND.unpack(value)
    assert not datapath.frontends.update(key, layouts.FRONTEND.pack(id_, generation, many, near))
    datapath.attach_sockets(cgroup)
    seen = [pod.do(call, "TCP", *V4) for _ in range(10)]  # a slot that is there is one of 200
    assert seen.count("ECONNREFUSED") >= 8
    assert datapath.drops()[DropReason.STALE_FRONTEND] == seen.count("ECONNREFUSED")


def test_a_kernel_without_set_retval_refuses_with_eperm(
    bpffs: Path, cgroup: Path, pod: Node
) -> None:
    path = Path(datapath_module.__file__).with_name("objects") / "socket.bpf.o"
    old = bpf.Object(path, bpffs, settings={"has_set_retval": b"\0"}, max_entries={})
    fd = os.open(cgroup, os.O_RDONLY)
    links.attach(old.program("connect4"), fd, links.AttachType.CONNECT4, bpffs / "connect4")
    os.close(fd)
    frontends = Map.pinned(bpffs / "frontends")
    key = layouts.pack_frontend_key(address("10.96.0.1:80/TCP"))
    assert frontends.update(key, layouts.FRONTEND.pack(1, 1, 0, b"")) == {}
    frontends.close()
    old.close()

    assert pod.do(call, "TCP", *V4) == "EPERM"


def test_a_failed_load_shows_what_libbpf_said(bpffs: Path) -> None:
    path = Path(datapath_module.__file__).with_name("objects") / "socket.bpf.o"
    settings = {"has_set_retval": b"\1"}
    bpf.Object(path, bpffs, settings=settings, max_entries={"frontends": 16}).close()
    with pytest.raises(OSError, match="frontends") as failed:
        bpf.Object(path, bpffs, settings=settings, max_entries={"frontends": 17})
    assert failed.value.errno == errno.EINVAL
    with pytest.raises(OSError, match=r"socket\.bpf\.o: setting nonsense"):
        bpf.Object(path, bpffs, settings={"nonsense": b"\1"}, max_entries={})

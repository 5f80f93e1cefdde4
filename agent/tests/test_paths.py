"""Asking and answering, with real sockets on the loopback; and what is shown of ways."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from agent.kernel.udp import HEADERS
from agent.probes.echo import Echo
from agent.probes.messages import SMALL, Message, new_token, pack, unpack, word
from agent.probes.paths import Probed, summary
from agent.probes.prober import Prober
from agent.probes.recent import Recent, rp_filtered, strict_devices
from agent.rules.probes import PathKey, Probe
from clustermesh.model import ClusterName, IPAddress

V4, V6 = ip_address("127.0.0.1"), ip_address("::1")
KEY = PathKey(ClusterName("east"), "node1", 4)
PORT = 24240
LARGE = 1400


def question(**more: object) -> Message:
    asked = Message(clustermesh="question", token=new_token(), cluster="east", node="node1")
    return msgspec.structs.replace(asked, **more)


def about_us(key: PathKey) -> Message:
    return Message(clustermesh="answer", token="", cluster="west", node="node2", verdict="well")


@contextlib.contextmanager
def answering() -> Iterator[Echo]:
    echo = Echo(PORT, about_us)
    echo.listen((V4, V6))
    try:
        yield echo
    finally:
        echo.close()


@pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("size", [SMALL + 48, LARGE])
async def test_a_question_of_any_size_is_answered_by_one_as_large(
    address: IPAddress, size: int
) -> None:
    with answering() as echo, Prober(address, PORT) as prober:
        asked = question(version=address.version)
        reply = await prober.ask(asked, address, size, 5)
        assert reply.answer is not None
        assert (reply.answer.cluster, reply.answer.node) == ("west", "node2")
        assert reply.answer.seen == str(address)
        assert reply.round_trip is not None
        assert echo.heard(KEY._replace(version=address.version), since=0.0) == asked


async def test_it_is_told_whether_another_question_arrived() -> None:
    with answering(), Prober(V4, PORT) as prober:
        first = question()
        await prober.ask(first, V4, SMALL + HEADERS[4], 5)
        for about, seen in ((first.token, "127.0.0.1"), (new_token(), "")):
            reply = await prober.ask(question(about=about), V4, SMALL + HEADERS[4], 5)
            assert reply.answer is not None
            assert reply.answer.about_seen == seen


async def test_where_nobody_listens_the_node_itself_says_so() -> None:
    with Prober(V4, PORT) as prober:
        reply = await prober.ask(question(), V4, SMALL + HEADERS[4], 5)
    assert reply.error == errno.ECONNREFUSED
    assert reply.is_refused_by(V4)
    assert not reply.is_refused_by(ip_address("127.0.0.2"))


async def test_what_does_not_fit_is_not_sent_in_pieces() -> None:
    with answering(), Prober(V4, PORT) as prober:
        reply = await prober.ask(question(), V4, prober.mtu(V4) + 1, 5)
    assert reply.error == errno.EMSGSIZE


async def test_a_port_that_is_taken_is_named() -> None:
    with answering():
        second = Echo(PORT, about_us)
        second.listen((V4,))
        assert second.failure == f"127.0.0.1 UDP port {PORT}: Address already in use"
        second.close()


def test_an_answer_is_never_larger_than_its_question() -> None:
    long = question(node="n" * 253, dropped={f"REASON_{n}": n for n in range(1, 40)})
    content = pack(long, SMALL)
    assert content is not None
    assert len(content) == SMALL
    read = unpack(content)
    assert read is not None
    assert (read.node, dict(read.dropped)) == ("n" * 253, {})
    assert pack(long, 100) is None
    large = pack(long, 1400)
    assert large is not None
    assert (len(large), unpack(large)) == (1400, read)  # no more is said in a larger one


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\0" * 512, b"{", b'{"clustermesh":"x"}', b"\xff", b"[" * 400),
        b'{"clustermesh":"question","token":"t","cluster":"east","node":"a","version":5}',
        b'{"clustermesh":"question","token":"%s","cluster":"east","node":"a"}' % (b"t" * 500),
    ],
)
def test_what_is_no_message_is_ignored(content: bytes) -> None:
    assert unpack(content) is None


def test_nothing_that_a_stranger_says_is_printed_as_it_is() -> None:
    said = word(question(verdict="\x1b[2J", key="\x1b" * 44, your_key="k" * 500, rp_filtered=-1))
    assert (said.verdict, said.key, said.our_key, said.rp_filtered) == ("", "", "", 0)


def test_only_what_is_dropped_lately_counts() -> None:
    now, counters = 0.0, {"SPOOFED_SOURCE": 7}
    recent = Recent(lambda: dict(counters), lambda: now)
    assert recent.look() == {}
    now, counters = 2.0, {"SPOOFED_SOURCE": 9, "TRANSIT": 1}
    assert recent.look() == {"SPOOFED_SOURCE": 2, "TRANSIT": 1}
    now = 12.0
    assert recent.look() == {"SPOOFED_SOURCE": 2, "TRANSIT": 1}
    now = 30.0
    assert recent.look() == {}


def test_reverse_path_filters_are_read_as_the_kernel_applies_them(tmp_path: Path) -> None:
    for device, value in {"all": 1, "default": 1, "lo": 0, "eth0": 0, "cm_vxlan": 2}.items():
        file = tmp_path / "ipv4/conf" / device / "rp_filter"
        file.parent.mkdir(parents=True)
        file.write_text(f"{value}\n")
    assert strict_devices(tmp_path) == ("eth0",)
    netstat = tmp_path / "netstat"
    netstat.write_text("TcpExt: A IPReversePathFilter B\nTcpExt: 1 42 3\nIpExt: X\nIpExt: 1\n")
    assert rp_filtered(netstat) == 42
    assert rp_filtered() >= 0


def test_ways_are_summed_up_by_cluster_and_what_fails_is_named() -> None:
    probe = Probe(V4, V4)
    rows = [
        (KEY, Probed(probe, began=1.0, round_trip=0.002, verdict="well")),
        (KEY._replace(version=6), Probed(probe, began=1.0, loss=1.0, verdict="mtu", cause="MTU")),
        (KEY._replace(node="node2"), Probed(Probe(refused="overlaps"))),
        (KEY._replace(node="node3"), Probed(Probe(unprobed="why"), "why", 0.0)),
        (KEY._replace(node="node4"), Probed(Probe(is_sampled=False), "too many")),
        (KEY._replace(node="node5"), Probed(probe)),
    ]
    status = summary(rows, now=30.0)
    (east,) = status.clusters
    assert (east.paths, east.well, east.failing, east.not_probed) == (6, 1, 2, 2)
    assert (east.loss, east.round_trip, east.worst) == (0.5, 0.002, "MTU")
    assert status.failing == ["east/node1 over IPv6: MTU"]
    assert status.not_probed == ["east/node3 over IPv4: not probed: why"]
    assert summary(rows, now=29.0).not_probed == [], "it may yet pass by itself"

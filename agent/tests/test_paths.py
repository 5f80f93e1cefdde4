"""Asking and answering, with real sockets on the loopback; and what is shown of ways."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import cast

import msgspec
import pytest

from agent.kernel.facts import Facts
from agent.kernel.udp import HEADERS
from agent.kernels import Kernel
from agent.own import OwnNode
from agent.probes.echo import Echo
from agent.probes.here import Here
from agent.probes.look import Look, Tools
from agent.probes.messages import SMALL, Message, new_token, pack, unpack, word
from agent.probes.paths import Paths, Probed, summary
from agent.probes.prober import Prober
from agent.probes.recent import Recent, rp_filtered, strict_devices
from agent.rows import Peer, PeerKey, UdpAddress
from agent.rules.causes import Cause, Verdict
from agent.rules.probes import PathKey, Probe
from agent.settings import AgentSettings
from clustermesh.model import ClusterName, IPAddress, Node
from clustermesh.state import Table, Watch

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


async def test_a_node_is_waited_for_as_long_as_it_lets_one_wait_as_a_rule() -> None:
    loop, size = asyncio.get_running_loop(), SMALL + HEADERS[4]
    with answering() as echo, Prober(V4, PORT) as prober:
        began = loop.time()
        assert await echo.hear(KEY, began) is None, "it was never heard of"
        for _ in range(3):  # a look takes two questions
            await prober.ask(question(), V4, size, 5)
            await prober.ask(question(), V4, size, 5)
            await asyncio.sleep(0.4)
        since = loop.time()
        waiting = asyncio.create_task(echo.hear(KEY, since), name="waiting")
        await asyncio.sleep(0)
        asked = question()
        await prober.ask(asked, V4, size, 5)
        assert await waiting == asked
        since = loop.time()
        assert await echo.hear(KEY, since) is None
        assert loop.time() - since > 0.4
        since = loop.time()
        assert await echo.hear(KEY, since) is None
        assert loop.time() - since < 0.4, "by then it would have asked"


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


class StillKernel:
    """A node with an address of its own and one among its pods."""

    facts = Facts(
        "eth0",
        1500,
        addresses=(("lo", ip_interface("10.1.0.1/32")), ("eth0", ip_interface("192.0.2.1/24"))),
        pod_cidrs=(ip_network("10.1.0.0/24"),),
        node_ips=(ip_address("192.0.2.1"),),
    )

    async def attached(self) -> None:
        pass


def here(peers: Table[PeerKey, Peer] | None = None) -> Here:
    settings = AgentSettings(
        cluster_name="west",
        cluster_id=2,
        node_name="node1",
        local_etcd_config=Path("/nowhere"),
        clusters_dir=Path("/nowhere"),
        encryption="wireguard",
    )
    nodes: Table[str, Node] = Table("nodes")
    own = OwnNode(encrypts=False, has_kernel=True)
    return Here(settings, cast("Kernel", StillKernel()), own, nodes, peers or Table("peers"))


class Counted:
    """Looks that ask as real ones do: two questions where all is well, and four in four seconds."""

    def __init__(self, failing: set[PathKey]) -> None:
        self.failing = failing
        self.asked: Counter[int] = Counter()  # by second
        self.looks: Counter[PathKey] = Counter()

    async def look(self, tools: Tools, key: PathKey, path: Probe, verdict: str) -> Look:
        self.looks[key] += 1
        await self.ask(None)
        for _ in range(3 if key in self.failing else 1):
            await asyncio.sleep(1.0 if key in self.failing else 0.001)
            await self.ask(tools)
        if key in self.failing:
            return Look(4, 0, cause=Cause(Verdict.BLOCKED, "blocked"))
        return Look(2, 2, 0.001)

    async def ask(self, tools: Tools | None) -> None:
        """With `tools`, when it is its turn; the first has had it."""
        if tools is not None:
            await tools.pace.turn()
        self.asked[int(asyncio.get_running_loop().time())] += 1


@contextlib.asynccontextmanager
async def probing(wanted: Table[PathKey, Probe], looks: Counted) -> AsyncIterator[Paths]:
    paths = Paths(here(), wanted, PORT, looks.look)
    running = asyncio.create_task(paths.run(), name="probing")
    try:
        yield paths
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def ways(probed: int, left_out: int = 0) -> Table[PathKey, Probe]:
    wanted: Table[PathKey, Probe] = Table("probes")
    writer = wanted.writer("test")
    for n in range(probed + left_out):
        path = Probe(V4, V4) if n < probed else Probe(unprobed="too many", is_sampled=False)
        writer.put(KEY._replace(node=f"node{n}"), path)
    writer.list_done()
    return wanted


@pytest.mark.looptime
async def test_a_node_asks_no_more_than_200_questions_a_second_whatever_fails() -> None:
    wanted = ways(5000)
    looks = Counted(set(sorted(wanted.keys())[::5][:1000]) | set(sorted(wanted.keys())[1::5]))
    assert len(looks.failing) == 2000
    async with probing(wanted, looks):
        await asyncio.sleep(160)  # all of them once take 70
    assert max(looks.asked.values()) <= 201
    assert sum(looks.asked.values()) > 190 * 160, "nor less, while there is something to ask"
    assert min(looks.looks[key] for key in wanted.keys()) >= 2, "nobody waits for ever"


@pytest.mark.looptime
async def test_a_few_ways_are_looked_at_every_five_seconds_and_each_second_while_they_fail() -> (
    None
):
    wanted = ways(2)
    well, failing = sorted(wanted.keys())
    looks = Counted({failing})
    async with probing(wanted, looks):
        await asyncio.sleep(100)
    assert 17 <= looks.looks[well] <= 26
    assert 22 <= looks.looks[failing] <= 27, "three seconds and one"


@pytest.mark.looptime
async def test_a_way_that_becomes_another_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "agent.probes.paths")
    wanted = ways(1)
    (key,) = wanted.keys()
    looks = Counted(set())
    async with probing(wanted, looks):
        for failing in (set(), {key}, set()):
            looks.failing = failing
            await asyncio.sleep(30)
    said = [record.message for record in caplog.records if record.name == "agent.probes.paths"]
    assert said == [f"the way to {key} fails: blocked", f"the way to {key} is well again"]


@pytest.mark.looptime
async def test_what_is_not_probed_costs_nothing_until_it_is() -> None:
    wanted = ways(0, left_out=4000)
    looks = Counted(set())
    async with probing(wanted, looks) as paths:
        await asyncio.sleep(1)
        watch = Watch(paths.table)
        watch.take()
        await asyncio.sleep(100)
        assert watch.take() == set()
        watch.close()
        key = min(wanted.keys())
        wanted.origins["test"].put(key, Probe(V4, V4))
        await asyncio.sleep(1)
        assert looks.looks == {key: 1}
        wanted.origins["test"].delete(key)
        await asyncio.sleep(1)
        assert paths.table.first(key) is None
        await asyncio.sleep(20)
    assert looks.looks == {key: 1}


def test_counters_are_read_once_a_second_however_often_one_asks() -> None:
    now, reads = 0.0, 0

    def read() -> dict[str, int]:
        nonlocal reads
        reads += 1
        return {}

    recent = Recent(read, lambda: now)
    while now < 10:
        recent.look()
        now += 0.01
    assert reads <= 10


def test_the_ports_of_a_peer_are_found_among_thousands() -> None:
    peers: Table[PeerKey, Peer] = Table("peers")
    writer = peers.writer("test")
    for n in range(5000):
        name = f"node{n}"
        address = UdpAddress(V4, 51871 + n % 2)
        writer.put(PeerKey("cm_wg00", name), Peer(KEY.cluster, name, address, (), 0, 0))
    asked = here(peers)
    for n in range(5000):
        assert asked.carrier(KEY._replace(node=f"node{n}")).ports == str(51871 + n % 2)

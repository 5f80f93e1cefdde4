from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clustermesh.cli.main import run
from clustermesh.cli.status import Report, facts, gather, troubles_of, wait_until_well, warnings_of
from clustermesh.daemon import Daemon, serve
from clustermesh.settings import TcpAddress
from clustermesh.status import (
    Cluster,
    ClusterPaths,
    DaemonStatus,
    Datapath,
    EncryptionStatus,
    EtcdStatus,
    MeshNodeStatus,
    PathsStatus,
    Problem,
    Remote,
    RemoteState,
    SourceStatus,
    TableStatus,
)

EAST = Remote(
    cluster="east", id=1, state=RemoteState.READY, since=130, nodes=2, services=3, endpoints=8
)
TO_EAST = ClusterPaths(cluster="east", paths=4, well=4, loss=0.125, round_trip=0.0004)
WEST = Remote(cluster="west", state=RemoteState.FAILED, since=7, last_error="connection refused")


@asynccontextmanager
async def agent(*remotes: Remote) -> AsyncIterator[str]:
    daemon = Daemon("agent", "1.2.3", clock=lambda: 0.0)
    daemon.add_readiness("start", lambda: None)
    daemon.add_status("cluster", lambda: Cluster("north", 9))
    daemon.add_status("node", lambda: "node1")
    daemon.add_status("datapath", lambda: Datapath(mode="bpf", routing="tunnel", attached=True))
    daemon.add_status("paths", lambda: PathsStatus(clusters=[TO_EAST]))
    daemon.add_remotes(lambda: remotes)
    async with serve(daemon, TcpAddress("127.0.0.1", 0)) as address:
        yield str(address)


@asynccontextmanager
async def apiserver(*problems: Problem) -> AsyncIterator[str]:
    daemon = Daemon("apiserver", "1.2.3", clock=lambda: 0.0)
    daemon.add_readiness("start", lambda: None)
    daemon.add_status("cluster", lambda: Cluster("north", 9))
    daemon.add_status(
        "source",
        lambda: SourceStatus(kind="dir:/m", listed=True, objects=4, problems=list(problems)),
    )
    daemon.add_status("etcd", lambda: EtcdStatus(endpoints=["https://e"], connected=True))
    async with serve(daemon, TcpAddress("127.0.0.1", 0)) as address:
        yield str(address)


async def status(*arguments: str) -> int:
    return await asyncio.to_thread(run, ["status", *arguments])


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


async def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    async with agent(EAST) as one, apiserver() as two:
        assert await status("--agent", one, "--apiserver", two) == 0
    assert lines(capsys.readouterr().out) == [
        "agent ready north/node1 (id 9), version 1.2.3, up 0 s, datapath bpf, routing tunnel",
        "apiserver ready north (id 9), version 1.2.3, up 0 s, 4 objects in dir:/m, etcd https://e",
        "REMOTE ID STATE FOR NODES SERVICES IDENTITIES ENDPOINTS PATHS LOSS ROUND TRIP",
        "east 1 ready 2 min 2 3 0 8 4/4 12% 0.4 ms",
        "all is well",
    ]


async def test_what_is_wrong_is_told_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("web.yaml document 2", "no kind")
    async with agent(EAST, WEST) as one, apiserver(problem) as two:
        assert await status("--agent", one, "--apiserver", two) == 1
    assert lines(capsys.readouterr().out)[-3:] == [
        "west - failed 7 s 0 0 0 0 - - -",
        "agent: west is failed for 7 s: connection refused",
        "apiserver: dir:/m: web.yaml document 2: no kind",
    ]


async def test_json_holds_what_the_daemons_said(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    async with agent(WEST) as one:
        assert await status("--agent", one, "--apiserver", "none", "-o", "json") == 1
    said: dict[str, Any] = json.loads(capfdbinary.readouterr().out)
    assert list(said) == ["agent", "troubles", "warnings"]
    assert said["agent"]["remotes"][0]["last_error"] == "connection refused"
    assert said["troubles"] == ["agent: west is failed for 7 s: connection refused"]


async def test_a_daemon_that_was_asked_for_must_answer() -> None:
    async with serve(Daemon("agent", "1"), TcpAddress("127.0.0.1", 0)) as address:
        closed = str(address)
    report = await asyncio.to_thread(gather, closed, closed)
    assert [trouble.split(":")[0] for trouble in report.troubles] == [
        "no agent answers at 127.0.0.1",
        "no apiserver answers at 127.0.0.1",
    ]


async def test_something_else_at_the_address_is_no_daemon() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n<html>")
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        report = await asyncio.to_thread(gather, f"{host}:{port}", "none")
    (trouble,) = report.troubles
    assert trouble.startswith(f"what answers at {host}:{port} is no clustermesh-agent: ")


def said(**fields: Any) -> DaemonStatus:
    return DaemonStatus(**{"daemon": "agent", "version": "1", "ready": True, **fields})


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (said(ready=False, reasons=["maps: not synced"]), "not ready: maps: not synced"),
        (said(ready=False), "not ready"),
        (said(datapath=Datapath(mode="bpf")), "the BPF programs are not attached"),
        (
            said(tables={"routes": TableStatus(9, 2)}),
            "2 of routes are not in place: see clustermesh show routes",
        ),
        (said(source=SourceStatus(kind="dir:/m")), "dir:/m has not been read"),
        (said(etcd=EtcdStatus(last_error="EOF")), "etcd does not answer: EOF"),
        (said(mesh_node=MeshNodeStatus(last_error="403")), "its MeshNode is not written: 403"),
        (said(conflicts=["service a/b: 1.2.3.4:80 is c/d's"]), "service a/b: 1.2.3.4:80 is c/d's"),
        (
            said(
                remotes=[Remote(cluster="e", state=RemoteState.REFUSED, last_error="id 9 is ours")]
            ),
            "e is refused for 0 s: id 9 is ours",
        ),
    ],
)
def test_each_trouble_is_a_line(status: DaemonStatus, trouble: str) -> None:
    assert list(troubles_of(status)) == [trouble]


def test_skipped_rows_and_drops_are_told_but_do_not_make_it_fail() -> None:
    status = said(
        datapath=Datapath(
            mode="bpf", attached=True, drops={"NO_TUNNEL": 3, "TTL": 0, "MULTICAST": 3}
        ),
        remotes=[
            Remote(cluster="e", state=RemoteState.READY, bad_rows=2, last_bad_row="nodes/x: no IP")
        ],
    )
    assert list(troubles_of(status)) == []
    assert list(warnings_of(status)) == [
        "e: skipped 2 bad rows: nodes/x: no IP",
        "3 packets were dropped: NO_TUNNEL",
    ]


def test_a_key_that_is_being_changed_is_told_with_what_that_waits_for() -> None:
    status = said(encryption=EncryptionStatus(previous_key="k", waits_for="west/node1 to answer"))
    assert list(troubles_of(status)) == []
    assert list(warnings_of(status)) == [
        "its WireGuard key is being changed, and waits for west/node1 to answer"
    ]


def test_refused_addresses_are_told_and_many_of_them_are_counted() -> None:
    claims = [f"10.2.{n}.0/24 of e/n is refused: overlaps 10.2.0.0/16 of w/n" for n in range(7)]
    assert list(troubles_of(said(refused=claims))) == [
        *claims[:5],
        "2 more CIDRs are refused: see clustermesh show cidrs",
    ]


def test_ways_that_fail_are_told_and_many_of_them_are_counted() -> None:
    failing = [f"west/node{n} over IPv4: UDP port 8472 is blocked" for n in range(7)]
    not_probed = ["west/node9 over IPv4: not probed: it publishes no address"]
    paths = PathsStatus(failing=failing, not_probed=not_probed, last_error="in use")
    assert list(troubles_of(said(paths=paths))) == [
        *failing[:5],
        "2 more paths fail: see clustermesh show paths",
        "others cannot probe this node: in use",
    ]
    assert list(warnings_of(said(paths=paths))) == not_probed


def test_a_mesh_node_that_is_yet_to_be_written_is_no_trouble() -> None:
    assert list(troubles_of(said(mesh_node=MeshNodeStatus()))) == []


def test_the_replica_that_leads_is_told_by_its_host() -> None:
    source = SourceStatus(kind="kube", listed=True, objects=4, leader="apiserver-7d9f_0b1c-22")
    assert list(facts(said(source=source))) == [
        "version 1",
        "up 0 s",
        "4 objects in kube",
        "leader apiserver-7d9f",
    ]


class Time:
    """A clock that sleeping turns."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_an_agent_without_a_datapath_claims_no_routing() -> None:
    assert list(facts(said(datapath=Datapath()))) == ["version 1", "up 0 s", "datapath none"]


def test_waiting_ends_when_all_is_well() -> None:
    time = Time()
    reports = iter([Report({}, ["not yet"]), Report({}, ["nor now"]), Report({}, [])])
    report = wait_until_well(lambda: next(reports), 60, now=lambda: time.now, sleep=time.sleep)
    assert not report.troubles
    assert time.now == pytest.approx(0.4)


def test_waiting_gives_up_at_the_deadline_and_says_what_is_wrong() -> None:
    time = Time()
    report = wait_until_well(
        lambda: Report({}, ["broken"]), 60, now=lambda: time.now, sleep=time.sleep
    )
    assert report.troubles == ["broken"]
    assert 60 <= time.now < 61

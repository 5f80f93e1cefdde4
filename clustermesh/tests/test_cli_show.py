from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.kernel.contents import FrontendRow, Traffic
from agent.kernel.layouts import Direction, DropReason
from agent.rows import IpcacheEntry
from clustermesh.cli import maps
from clustermesh.cli.main import run
from clustermesh.daemon import Daemon, serve
from clustermesh.model import ClusterId, IdentityId, L4Address, Protocol
from clustermesh.settings import Address, TcpAddress, UnixAddress
from clustermesh.state import Table
from clustermesh.status import RowFailure

ECHO = {
    "service": "test/echo",
    "address": "10.0.0.1:8080/TCP",
    "affinity": "none",
    "backends": [
        {"address": "10.2.0.7:9090/TCP", "cluster": "cluster2", "state": "active"},
        {"address": "10.1.0.7:9090/TCP", "cluster": "cluster1", "state": "standby"},
    ],
}
APPLES = {
    "service": "test/apples",
    "address": "10.0.0.2:80/TCP",
    "affinity": "local",
    "backends": [],
}


def one_row(key: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return iter(rows.values())


def agent() -> Daemon:
    daemon = Daemon("agent", "1.2.3")
    frontends: Table[str, Mapping[str, Any]] = Table("frontends")
    frontends.writer("rules").replace({"echo": ECHO, "apples": APPLES})
    daemon.add_table("frontends", frontends, one_row)
    cidrs: Table[str, Mapping[str, Any]] = Table("cidrs")
    cidrs.writer("rules").replace(
        {
            "a": {"cidr": "10.1.0.0/24", "cluster": "east", "node": "node1", "refused": ""},
            "b": {
                "cidr": "10.1.0.0/16",
                "cluster": "west",
                "node": "node2",
                "refused": "overlaps 10.1.0.0/24 of east",
            },
        }
    )
    failure = RowFailure(key="10.9.0.0/24", error="no such device", attempts=3, retry_in=0.8)
    unread = RowFailure(key="nodes/x", origin="west", error="of cluster north")
    daemon.add_table("cidrs", cidrs, one_row, bad_rows=lambda: [failure, unread])
    return daemon


class Said(NamedTuple):
    """What the command left behind."""

    code: int
    out: str
    err: str


class Command:
    """The command, run against a served agent."""

    def __init__(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self._captured = capfdbinary

    async def run(self, *arguments: str, address: Address | None = None) -> Said:
        async with serve(agent(), address or TcpAddress("127.0.0.1", 0)) as bound:
            code = await asyncio.to_thread(run, [*arguments, "--agent", str(bound)])
        return self._said(code)

    def run_alone(self, *arguments: str) -> Said:
        return self._said(run(arguments))

    def _said(self, code: int) -> Said:
        out, err = self._captured.readouterr()
        return Said(code, out.decode(), err.decode())


@pytest.fixture
def command(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary)


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


async def test_a_table_is_sorted_with_a_backend_a_line(command: Command) -> None:
    said = await command.run("show", "frontends")
    assert lines(said.out) == [
        "SERVICE ADDRESS AFFINITY BACKENDS",
        "test/apples 10.0.0.2:80/TCP local -",
        "test/echo 10.0.0.1:8080/TCP none 10.2.0.7:9090/TCP cluster2 active",
        "10.1.0.7:9090/TCP cluster1 standby",
    ]
    assert (said.code, said.err) == (0, "")


async def test_refused_rows_and_failures_are_printed_below_with_their_cause(
    command: Command,
) -> None:
    said = await command.run("show", "cidrs")
    assert lines(said.out) == [
        "CIDR CLUSTER NODE",
        "10.1.0.0/16 west node2",
        "10.1.0.0/24 east node1",
        "refused: 10.1.0.0/16 west: overlaps 10.1.0.0/24 of east",
        "failed: 10.9.0.0/24: no such device; tried 3 times, again in 0.8 s",
        "failed: nodes/x (from west): of cluster north",
    ]


async def test_json_is_as_served(command: Command) -> None:
    said = await command.run("show", "frontends", "-o", "json")
    assert json.loads(said.out) == {"rows": [ECHO, APPLES], "failures": []}


async def test_an_agent_on_a_unix_socket_is_asked_too(command: Command, tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "agent.sock")
    said = await command.run("show", "frontends", "-o", "json", address=address)
    assert len(json.loads(said.out)["rows"]) == 2


async def test_a_table_that_the_agent_has_not_is_one_line(command: Command) -> None:
    said = await command.run("show", "nodes")
    assert said == Said(1, "", "error: agent has no table 'nodes', only frontends, cidrs\n")


def test_an_agent_that_does_not_run_is_one_line_and_what_to_do(
    command: Command, tmp_path: Path
) -> None:
    said = command.run_alone("show", "nodes", "--agent", f"unix:{tmp_path}/none")
    assert said == Said(
        1,
        "",
        f"error: no agent answers at unix:{tmp_path}/none: No such file or directory\n"
        "hint: start clustermesh-agent, or say where it listens with --agent\n",
    )


@pytest.mark.parametrize("arguments", [("shwo",), ("show", "noodles"), ("show", "nodes", "--nope")])
def test_a_command_line_that_makes_no_sense_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], command: Command
) -> None:
    said = command.run_alone(*arguments)
    assert said.code == 2
    assert [line.partition(":")[0] for line in said.err.splitlines()] == ["error", "hint"]


def test_maps_are_shown_with_what_is_missing_in_them() -> None:
    http = L4Address(ip_address("10.0.0.1"), 80, Protocol.TCP)
    pod = L4Address(ip_address("fd00::7"), 8080, Protocol.TCP)
    assert maps.frontends([FrontendRow(http, 1, 4, (pod, None))]) == [
        {
            "address": "10.0.0.1:80/TCP",
            "id": 1,
            "generation": 4,
            "backends": ["[fd00::7]:8080/TCP", None],
            "conflict": "nothing in slot 1",
        }
    ]
    entry = IpcacheEntry(IdentityId(0x20001), ClusterId(2), ip_address("192.0.2.1"))
    assert maps.ipcache({ip_network("10.2.0.7/32"): entry}) == [
        {"prefix": "10.2.0.7/32", "identity": 0x20001, "cluster_id": 2, "node_ip": "192.0.2.1"}
    ]
    assert maps.drops({DropReason.NO_TUNNEL: 3}) == [{"reason": "NO_TUNNEL", "packets": 3}]
    assert maps.counters({Direction.EGRESS: Traffic(5, 400)}) == [
        {"direction": "egress", "packets": 5, "bytes": 400}
    ]


def test_maps_are_looked_for_where_the_environment_says(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERMESH_BPFFS", str(tmp_path))
    said = command.run_alone("show", "maps")
    assert said.err.splitlines()[0] == f"error: {tmp_path} holds no maps of clustermesh"


def test_a_mistake_in_a_command_leads_to_the_help_of_that_command(command: Command) -> None:
    said = command.run_alone("show", "maps", "--foo")
    assert said.code == 2
    assert said.err.splitlines()[1] == "hint: see clustermesh show maps --help"


def test_a_bpffs_without_maps_is_one_line(command: Command, tmp_path: Path) -> None:
    said = command.run_alone("show", "maps", "--bpffs", str(tmp_path))
    assert (said.code, said.out) == (1, "")
    assert said.err.splitlines()[0] == f"error: {tmp_path} holds no maps of clustermesh"

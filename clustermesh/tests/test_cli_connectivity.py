"""`clustermesh connectivity test`: waits for a new look at every way, and fails when one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clustermesh.cli.connectivity import Ways, given_up
from clustermesh.cli.main import run
from clustermesh.daemon import Daemon, serve
from clustermesh.settings import TcpAddress
from clustermesh.state import Table
from clustermesh.status import Cluster

WELL = {"state": "well", "age": 0.0, "failing": ""}


@asynccontextmanager
async def agent(**by_node: dict[str, Any]) -> AsyncIterator[str]:
    """An agent in east/node1, and its ways to nodes of west, whose age is that at each request."""
    daemon = Daemon("agent", "1")
    table: Table[str, dict[str, Any]] = Table("paths")
    for node, row in by_node.items():
        table.writer(node).put(node, {"cluster": "west", "node": node, "ip": "IPv4", **row})
    daemon.add_status("cluster", lambda: Cluster("east", 1))
    daemon.add_status("node", lambda: "node1")
    daemon.add_table("paths", table, lambda _, rows: rows.values())
    async with serve(daemon, TcpAddress("127.0.0.1", 0)) as address:
        yield str(address)


async def code_of(address: str, *flags: str) -> int:
    return await asyncio.to_thread(run, ["connectivity", "test", "--agent", address, *flags])


async def test_all_ways_are_well(capsys: pytest.CaptureFixture[str]) -> None:
    async with agent(node1=WELL, node2={"state": "not probed", "note": "why"}) as address:
        assert await code_of(address) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[:2] == [
        ["FROM", "TO", "IP", "STATE", "NOTE"],
        ["east/node1", "west/node1", "IPv4", "well", "-"],
    ]
    assert said[-1] == ["all", "is", "well"]


async def test_a_way_that_fails_is_told_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"state": "failing", "failing": "10.2.0.0/24 is refused"}  # nobody looks at it
    async with agent(node1=WELL, node2=refused) as address:
        assert await code_of(address) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "east/node1 to west/node2 over IPv4: 10.2.0.0/24 is refused"
    )


async def test_what_was_seen_before_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    async with agent(node1={**WELL, "age": 9.0}) as address:
        assert await code_of(address, "--timeout", "0.1") == 1
    assert "it was not looked at within" in capsys.readouterr().out


async def test_without_any_way_nothing_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    async with agent() as address:
        assert await code_of(address) == 1
    assert "there is no way to test" in capsys.readouterr().out


def test_who_cannot_be_asked_is_not_waited_for() -> None:
    assert Ways("east/node1", failure="it is Pending").is_fresh(0.0)
    assert given_up(Ways("east/node1", [WELL]), 5.0).rows == [WELL]

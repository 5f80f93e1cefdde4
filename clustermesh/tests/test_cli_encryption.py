"""`clustermesh encryption`: how a node encrypts, as a person and a script read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clustermesh.cli.main import run
from clustermesh.daemon import Daemon, serve
from clustermesh.settings import TcpAddress
from clustermesh.status import Cluster, EncryptionStatus

KEY, OLD = "A" * 43 + "=", "B" * 43 + "="


@asynccontextmanager
async def agent(encryption: EncryptionStatus | None) -> AsyncIterator[str]:
    """An agent in east/node1."""
    daemon = Daemon("agent", "1")
    daemon.add_status("cluster", lambda: Cluster("east", 1))
    daemon.add_status("node", lambda: "node1")
    if encryption is not None:
        daemon.add_status("encryption", lambda: encryption)
    async with serve(daemon, TcpAddress("127.0.0.1", 0)) as address:
        yield str(address)


async def encryption(address: str, *words: str) -> int:
    return await asyncio.to_thread(run, ["encryption", *words, "--agent", address])


def changing() -> EncryptionStatus:
    return EncryptionStatus(
        type="wireguard",
        driver="kernel",
        public_key=KEY,
        previous_key=OLD,
        key_age=130,
        ports=[51871, 51873],
        peers=3,
        answered=2,
    )


async def test_keys_are_whole_in_a_narrow_terminal_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("COLUMNS", "60")
    async with agent(changing()) as address:
        assert await encryption(address, "status") == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert said.count("A") - said.count("AGE") == KEY.count("A")


async def test_a_key_that_is_being_replaced_is_below_the_new_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with agent(changing()) as address:
        assert await encryption(address, "status") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NODE", "BY", "AGE", "PEERS", "PORTS", "KEY"],
        ["east/node1", "kernel", "2", "min", "2/3", "51871,51873", KEY, "(new)"],
        [OLD, "(until", "peers", "have", "moved)"],
    ]


async def test_a_node_that_does_not_encrypt_is_told_how_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with agent(None) as address:
        assert await encryption(address, "status") == 1
        assert capsys.readouterr().out.splitlines() == [
            "east/node1: nothing is encrypted",
            "hint: start agents with --encryption wireguard, in all clusters",
        ]
        assert await encryption(address, "status", "-o=json") == 1
        assert json.loads(capsys.readouterr().out) == {
            "nodes": [{"node": "east/node1", "encryption": None}],
            "troubles": ["east/node1: nothing is encrypted"],
        }
        assert await encryption(address, "rotate") == 1
    said = capsys.readouterr().err
    assert "error: east/node1 does not encrypt" in said
    assert "in all clusters" in said

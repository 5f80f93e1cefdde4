"""Connections keep their source past the masquerading of others, on the real kernel."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, ip_network
from itertools import islice

import pytest

from agent.kernel.nftables import NFT_TABLE, Nftables
from agent.rows import RouteKey
from agent.targets.sources import Kept, SourceTarget
from agent.tests.netns import in_namespace, sh
from clustermesh.state import Reconciler, Table

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft"),
]

WITHIN = 20.0  # seconds

PREFIXES = ("10.2.1.0/24", "10.2.2.7/32", "10.2.0.0/16", "fd00:10:2:1::/64")


NODES = ("172.30.2.1/32", "fd00:30::2/128")
PODS = (ip_network("10.1.1.0/24"), ip_network("fd00:10:1:1::/64"))


def networks(*texts: str) -> frozenset[RouteKey]:
    """Where routes lead, for pods only if it is one of the nodes."""
    return frozenset(RouteKey(ip_network(text), text in NODES) for text in texts)


def ruleset() -> list[str]:
    """All that there is, in an order that says nothing: nft lists sets as they were made."""
    return sorted(sh("nft list ruleset").replace(",", " ").split())


def with_nftables(body: Callable[[Nftables], Awaitable[None]]) -> None:
    in_namespace(lambda _: body(Nftables()))


def test_prefixes_of_any_length_and_family_stand_beside_each_other() -> None:
    async def body(nftables: Nftables) -> None:
        assert await nftables.prepare() == frozenset()
        await nftables.apply(networks(*PREFIXES), ())
        assert await nftables.prepare() == networks(*PREFIXES)
        await nftables.apply((), networks("10.2.1.0/24", "10.9.9.0/24", "10.9.0.0/20"))
        assert await nftables.prepare() == networks(*PREFIXES) - networks("10.2.1.0/24")
        assert "pods4-24" not in sh("nft list ruleset"), "a set that is empty goes"

    with_nftables(body)


def test_nodes_are_exempt_for_our_pods_alone_and_their_networks_are_followed() -> None:
    async def body(nftables: Nftables) -> None:
        await nftables.prepare(PODS)
        await nftables.apply(networks(*PREFIXES, *NODES), ())
        said = sh(f"nft list table inet {NFT_TABLE}").splitlines()
        assert [line.partition(" snat ")[0].strip() for line in said if "@nodes" in line] == [
            "ip saddr 10.1.1.0/24 ip daddr @nodes4-32",
            "ip daddr 10.1.1.0/24 ip saddr @nodes4-32",
            "ip6 saddr fd00:10:1:1::/64 ip6 daddr @nodes6-128",
            "ip6 daddr fd00:10:1:1::/64 ip6 saddr @nodes6-128",
        ]
        other = (ip_network("10.1.7.0/24"),)
        assert await nftables.prepare(other) == networks(*PREFIXES, *NODES)
        listed = sh(f"nft list table inet {NFT_TABLE}")
        assert "10.1.7.0/24" in listed
        assert "10.1.1.0/24" not in listed

    with_nftables(body)


def test_the_next_agent_adopts_the_table_and_leaves_what_others_have_alone() -> None:
    async def body(nftables: Nftables) -> None:
        sh("nft add table inet theirs")
        sh("nft add chain inet theirs nat { type nat hook postrouting priority srcnat ; }")
        sh("nft add rule inet theirs nat masquerade")
        theirs = sh("nft list table inet theirs")
        await nftables.prepare()
        await nftables.apply(networks(*PREFIXES), ())
        before = ruleset()
        assert await Nftables().prepare() == networks(*PREFIXES)
        assert ruleset() == before
        for _ in range(2):
            await nftables.remove()
            assert sh("nft list ruleset") == theirs

    with_nftables(body)


def test_a_table_that_another_release_made_is_replaced() -> None:
    async def body(nftables: Nftables) -> None:
        sh(f"nft add table inet {NFT_TABLE}")
        chain = "{ type nat hook postrouting priority srcnat - 1 ; }"
        sh(f"nft add chain inet {NFT_TABLE} sources {chain}")
        assert "srcnat - 1;" in sh(f"nft list table inet {NFT_TABLE}")
        assert await nftables.prepare() == frozenset()
        assert "srcnat - 1;" not in sh(f"nft list table inet {NFT_TABLE}")

    with_nftables(body)


def test_what_others_take_away_is_put_back_and_our_own_writing_is_not_drift() -> None:
    async def body(nftables: Nftables) -> None:
        table: Table[RouteKey, Kept] = Table("routes")
        writer = table.writer("test")
        reconciler: Reconciler[RouteKey, Kept, Kept] = Reconciler(
            table, SourceTarget(nftables, lambda: PODS), lambda _, row: row
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(reconciler.run(), name="reconciler")
            for key in networks(*PREFIXES, *NODES):
                writer.put(key, True)
            writer.list_done()
            await reconciler.synced.wait()
            for command in (
                "nft flush ruleset",
                f"nft flush chain inet {NFT_TABLE} sources",
                f"nft delete element inet {NFT_TABLE} pods4-24 {{ 10.2.1.0 }}",
                f"nft add element inet {NFT_TABLE} pods4-24 {{ 10.9.8.7 }}",  # no /24 begins there
            ):
                before = ruleset()
                sh(command)
                async with asyncio.timeout(WITHIN):
                    while ruleset() != before:  # noqa: ASYNC110 - kernel: polled
                        await asyncio.sleep(0.01)
            assert reconciler.repairs == 2 * (len(PREFIXES) + len(NODES)) + 1
            running.cancel()

    with_nftables(body)


def test_who_waits_goes_on_when_the_prefixes_are_there() -> None:
    async def body(nftables: Nftables) -> None:
        target = SourceTarget(nftables, lambda: PODS)
        await target.wait_for(networks(*PREFIXES))  # not before it is known that this works
        await target.actual()
        async with asyncio.TaskGroup() as tasks:
            first, second = networks(PREFIXES[0]), networks(PREFIXES[1])
            waiting = tasks.create_task(target.wait_for(first | second), name="waiting")
            await target.apply(dict.fromkeys(first, True), ())
            assert not waiting.done()
            await target.apply(dict.fromkeys(second, True), ())
        assert await nftables.prepare() == first | second

    with_nftables(body)


def test_nobody_waits_for_what_cannot_be_had() -> None:
    async def body(nftables: Nftables) -> None:
        target = SourceTarget(nftables, lambda: PODS)
        await target.actual()
        await target.apply(dict.fromkeys(networks("10.2.1.0/24"), True), ())
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(target.wait_for(networks("10.2.9.0/24")), name="waiting")
            await asyncio.sleep(0)
            sh(f"nft delete table inet {NFT_TABLE}")
            with pytest.raises(OSError, match="nft: "):
                await target.apply(dict.fromkeys(networks("10.2.9.0/24"), True), ())
            await asyncio.wait_for(waiting, 0.5)

    with_nftables(body)


def test_without_nft_the_cause_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(nftables: Nftables) -> None:
        with pytest.raises(FileNotFoundError, match="install nftables"):
            await nftables.prepare()
        await nftables.remove()

    monkeypatch.setenv("PATH", "/nowhere")
    asyncio.run(body(Nftables()))


def test_50_000_prefixes_are_added_and_deleted() -> None:
    async def body(nftables: Nftables) -> None:
        subnets = IPv4Network("20.0.0.0/8").subnets(new_prefix=26)
        wanted = frozenset(map(RouteKey, islice(subnets, 50_000)))
        await nftables.prepare()
        await nftables.apply(wanted, ())
        # While the kernel makes a set larger, which it does by and by, it may list it in part. An
        # agent adds what is missing anew, which changes nothing.
        async with asyncio.timeout(WITHIN):
            while await nftables.prepare() != wanted:
                pass
        await nftables.apply((), wanted)
        assert await nftables.prepare() == frozenset()

    with_nftables(body)

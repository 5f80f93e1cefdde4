"""What is led nowhere, as clusters come and go: tables first, then the routes themselves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from ipaddress import ip_network
from typing import Any

import pytest

from agent.backstops import HOLD, keep_backstops
from agent.kernel.netlink import Netlink
from agent.kernel.route_messages import KernelRoute
from agent.rows import Backstop, Cidr, Reserved, RouteKey
from agent.rules.cidrs import CidrKey
from agent.targets.backstops import NOWHERE, BackstopTarget
from agent.tests.netns import in_namespace, sh
from clustermesh.model import ClusterId, ClusterName, IPNetwork
from clustermesh.state import Table
from clustermesh.tests.etcd_server import running

EAST = ClusterName("east")
IDS = {"east": 1, "west": 2, "north": 3}


class World:
    """What clusters claim and what is this node's, and what is kept of it."""

    def __init__(self) -> None:
        self.cidrs: Table[CidrKey, Cidr] = Table("cidrs")
        self.claims = self.cidrs.writer("rule")
        self.reserved: Table[IPNetwork, Reserved] = Table("reserved")
        self.networks = self.reserved.writer("this node")
        self.kept = Table[RouteKey, Backstop]("backstops").writer("claims")

    def keep(self, *found: str) -> Coroutine[None, None, None]:
        keys = [RouteKey(ip_network(text), text.endswith("/32")) for text in found]
        return keep_backstops(self.cidrs, self.reserved, self.kept, EAST, keys)

    def claim(self, cluster: str, cidr: str, **more: Any) -> None:
        name, number = ClusterName(cluster), ClusterId(IDS[cluster])
        row = Cidr(name, number, "node", (), is_node=cidr.endswith("/32"), **more)
        self.claims.put(CidrKey(ip_network(cidr), name, "node"), row)

    def leave(self, cluster: str, cidr: str) -> None:
        self.claims.delete(CidrKey(ip_network(cidr), ClusterName(cluster), "node"))

    async def shows(self, wanted: str) -> None:
        """Let everything run that is due, and compare; what is held is in brackets."""
        await asyncio.sleep(0.01)
        rows = sorted(self.kept.own.items(), key=lambda row: str(row[0]))
        assert all(key.from_pods == (key.prefix.prefixlen == 32) for key, _ in rows)
        assert " ".join(f"({p})" if row.is_held else str(p) for p, row in rows) == wanted


@pytest.mark.looptime
async def test_what_other_clusters_claim_for_their_pods_is_led_nowhere() -> None:
    world = World()
    async with running(world.keep()):
        world.claim("east", "10.1.0.0/24")
        world.claim("west", "10.2.0.0/24")
        world.claim("west", "fd00:2::/64")
        world.claim("west", "10.9.0.0/24", refused="overlaps the network of docker0")
        await world.shows("10.2.0.0/24 fd00:2::/64")


@pytest.mark.looptime
async def test_for_pods_so_are_other_clusters_nodes_for_as_long_as_they_are_theirs() -> None:
    world = World()
    async with running(world.keep("192.0.2.9/32", "192.0.2.2/32", "192.0.2.1/32")):
        world.networks.put(ip_network("192.0.2.0/24"), Reserved("the network of eth0"))
        world.claim("east", "192.0.2.1/32")
        world.claim("west", "192.0.2.2/32")
        world.claim("west", "192.0.2.3/32")
        world.claim("west", "192.0.2.4/32", closed="it does not encrypt")
        world.claim("west", "192.0.2.5/32", unrouted="its etcd is read there")
        await world.shows("192.0.2.2/32 192.0.2.3/32 (192.0.2.9/32)")
        world.leave("west", "192.0.2.3/32")
        await world.shows("192.0.2.2/32 (192.0.2.9/32)")
        await asyncio.sleep(60)
        await world.shows("192.0.2.2/32")


@pytest.mark.looptime
async def test_what_nobody_claims_any_more_is_held_for_a_time() -> None:
    world = World()
    async with running(world.keep()):
        world.claim("west", "10.2.0.0/24")
        await world.shows("10.2.0.0/24")
        world.leave("west", "10.2.0.0/24")
        await world.shows("(10.2.0.0/24)")
        await asyncio.sleep(HOLD / 2)
        world.claim("west", "10.2.1.0/24")
        await world.shows("(10.2.0.0/24) 10.2.1.0/24")
        await asyncio.sleep(HOLD / 2)
        await world.shows("10.2.1.0/24")


@pytest.mark.looptime
async def test_what_is_claimed_again_is_held_no_more() -> None:
    world = World()
    async with running(world.keep()):
        world.claim("west", "10.2.0.0/24")
        await world.shows("10.2.0.0/24")
        world.leave("west", "10.2.0.0/24")
        await world.shows("(10.2.0.0/24)")
        world.claim("north", "10.2.0.0/24")
        await world.shows("10.2.0.0/24")
        await asyncio.sleep(HOLD)
        await world.shows("10.2.0.0/24")


@pytest.mark.looptime
async def test_what_an_earlier_agent_left_is_held_anew() -> None:
    world = World()
    async with running(world.keep("10.2.0.0/24", "10.3.0.0/24")):
        await world.shows("(10.2.0.0/24) (10.3.0.0/24)")
        world.claim("west", "10.2.0.0/24")
        await world.shows("10.2.0.0/24 (10.3.0.0/24)")
        await asyncio.sleep(HOLD)
        await world.shows("10.2.0.0/24")


@pytest.mark.looptime
async def test_what_has_come_to_be_our_own_is_not_held() -> None:
    """Or our cluster's pods, or a network that this node is on, would be led nowhere."""
    world = World()
    async with running(world.keep("10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24")):
        await world.shows("(10.2.0.0/24) (10.3.0.0/24) (10.4.0.0/24)")
        world.claim("east", "10.2.0.0/26")
        await world.shows("(10.3.0.0/24) (10.4.0.0/24)")
        world.networks.put(ip_network("10.3.0.0/16"), Reserved("the network of docker0"))
        await world.shows("(10.4.0.0/24)")


@pytest.mark.kernel
@pytest.mark.vm
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_it_counts_while_the_other_route_is_missing() -> None:
    async def body(netlink: Netlink) -> None:
        prefixes = [ip_network("10.2.1.0/24"), ip_network("fd00:10:2:1::/64")]
        nodes = [ip_network("172.30.9.9/32"), ip_network("fd00:30::9:9/128")]
        keys = [*map(RouteKey, prefixes), *(RouteKey(node, from_pods=True) for node in nodes)]
        target = BackstopTarget(netlink.backstops)
        sh("ip route add default dev eth0")
        sh("ip -6 route add default dev eth0")
        sh("ip link add way type bridge")
        sh("ip link set way addrgenmode none up")
        await netlink.ensure_rules([ip_network("10.1.1.0/24"), ip_network("fd00:10:1:1::/64")])
        for _ in range(2):
            assert await target.apply(dict.fromkeys(keys, NOWHERE), ()) == {}
            assert await target.actual() == dict.fromkeys(keys, NOWHERE)
        for node, pod in zip(nodes, ("10.1.1.5", "fd00:10:1:1::5"), strict=True):
            assert "dev eth0" in sh(f"ip route get {node[0]}")
            with pytest.raises(AssertionError, match=r"No route to host|unreachable"):
                sh(f"ip route get {node[0]} from {pod} iif wire")
        way = dict.fromkeys(keys, KernelRoute("way"))
        assert await netlink.routes.apply(way, ()) == {}
        assert await netlink.routes.dump() == way
        for prefix in prefixes:
            assert "dev way" in sh(f"ip route get {prefix[7]}")
        sh("ip link del way")  # and its routes
        for prefix in prefixes:
            with pytest.raises(AssertionError, match=r"No route to host|unreachable"):
                sh(f"ip route get {prefix[7]}")
        await netlink.remove_everything()
        for prefix in prefixes:
            assert "dev eth0" in sh(f"ip route get {prefix[7]}")

    in_namespace(body)

"""What routes are made of (pure), and that they stay, on the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
import pytest

from agent.kernel.facts import Facts
from agent.kernel.netlink import Netlink
from agent.kernel.route_messages import KernelRoute
from agent.kernel.routes import RouteSocket
from agent.kernel.tunnel import Tunnel
from agent.rows import Route, RouteKey, Routing
from agent.targets.routes import RouteTarget, kernel_route
from agent.tests.netns import in_namespace, sh
from clustermesh.model import ClusterName
from clustermesh.state import Reconciler, Table

FACTS = Facts(
    underlay="eth0",
    mtu=1500,
    addresses=(
        ("eth0", ip_interface("172.30.1.1/16")),
        ("eth1", ip_interface("198.51.100.1/24")),
        ("cni0", ip_interface("10.1.1.1/24")),
    ),
    pod_cidrs=(ip_network("10.1.1.0/24"), ip_network("fd00:10:1:1::/64")),
)

VXLAN = Tunnel()

PODS = FACTS.pod_cidrs

WITHIN = 20.0
"""Seconds: far more than it takes on a busy machine, far less than between two comparisons."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def show(
    prefix: str, node_ip: str, routing: Routing, facts: Facts = FACTS, *, from_pods: bool = False
) -> str:
    """A route, as `ip route` would print it."""
    row = Route(ClusterName("west"), "node1", ip_address(node_ip), routing)
    route = kernel_route(RouteKey(ip_network(prefix), from_pods), row, VXLAN, facts)
    assert route is not None
    words = {"via": route.gateway, "dev": route.device, "src": route.source, "mtu": route.mtu}
    return " ".join(f"{word} {value}" for word, value in words.items() if value is not None)


def test_a_tunnel_route_leaves_room_for_what_is_outside() -> None:
    assert show("10.2.1.0/24", "172.30.2.1", Routing.TUNNEL) == (
        "dev cm_vxlan src 10.1.1.1 mtu 1450"
    )
    assert show("10.2.1.0/24", "fd00:30::2", Routing.TUNNEL) == (
        "dev cm_vxlan src 10.1.1.1 mtu 1430"
    )


def test_a_source_is_preferred_only_where_the_node_has_one_of_that_family() -> None:
    assert show("fd00:10:2:1::/64", "172.30.2.1", Routing.TUNNEL) == "dev cm_vxlan mtu 1450"


def test_without_an_address_among_its_pods_a_node_calls_from_its_own() -> None:
    """And not from whichever of its addresses the kernel comes upon first."""
    own = (ip_address("172.30.1.1"), ip_address("198.51.100.1"))
    facts = msgspec.structs.replace(FACTS, addresses=FACTS.addresses[:2], node_ips=own)
    assert show("10.2.1.0/24", "172.30.2.1", Routing.TUNNEL, facts) == (
        "dev cm_vxlan src 172.30.1.1 mtu 1450"
    )


def test_what_pods_send_to_a_node_has_a_source_already() -> None:
    assert show("172.30.2.1", "172.30.2.1", Routing.TUNNEL, from_pods=True) == (
        "dev cm_vxlan mtu 1450"
    )


def test_a_direct_route_goes_by_the_device_whose_segment_the_node_is_on() -> None:
    assert show("10.2.1.0/24", "172.30.2.1", Routing.DIRECT) == (
        "via 172.30.2.1 dev eth0 src 10.1.1.1"
    )
    assert show("10.2.1.0/24", "198.51.100.2", Routing.DIRECT) == (
        "via 198.51.100.2 dev eth1 src 10.1.1.1"
    )
    assert show("10.2.1.0/24", "203.0.113.1", Routing.DIRECT) == (
        "via 203.0.113.1 dev eth0 src 10.1.1.1"
    )


async def nothing(keys: Collection[RouteKey]) -> None:
    """Have no route wait for anything."""


class Kept:
    """A route table that a reconciler keeps."""

    def __init__(self, netlink: Netlink, target: RouteTarget) -> None:
        self.netlink = netlink
        self.comparisons = 0
        self.looker = RouteSocket()  # one of its own: a socket serves one call at a time
        self.table: Table[RouteKey, KernelRoute] = Table("routes")
        self.writer = self.table.writer("test")
        self.reconciler: Reconciler[RouteKey, KernelRoute, KernelRoute] = Reconciler(
            self.table, target, lambda _, route: route
        )

    async def put_back(self) -> None:
        """Wait until the kernel has what the table has."""
        wanted = {key: self.table.first(key) for key in self.table.keys()}
        async with asyncio.timeout(WITHIN):
            while await self.looker.dump() != wanted:  # noqa: ASYNC110 - kernel state: polled
                await asyncio.sleep(0.01)


def kept(body: Callable[[Kept], Awaitable[None]], routing: Routing = Routing.TUNNEL) -> None:
    """Run `body` in a fresh namespace, with a reconciler that keeps eight routes there."""

    async def main(netlink: Netlink) -> None:
        async def prepare() -> None:
            keeper.comparisons += 1
            await netlink.ensure_tunnel_device(1450, VXLAN)
            await netlink.ensure_rules(PODS)

        keeper = Kept(netlink, RouteTarget(netlink, VXLAN, prepare, nothing))
        facts = await netlink.facts(node_ips=[ip_address("172.30.1.1")])
        for prefix, node_ip in (
            *(("10.2.1.0/24", "172.30.2.1"), ("10.2.2.0/24", "172.30.2.2")),
            *(("fd00:10:2:1::/64", "fd00:30::2:1"), ("fd00:10:2:2::/64", "fd00:30::2:2")),
        ):
            row = Route(ClusterName("west"), "node", ip_address(node_ip), routing)
            for key in (RouteKey(ip_network(prefix)), RouteKey(ip_network(node_ip), True)):
                wanted = kernel_route(key, row, VXLAN, facts)
                assert wanted is not None
                keeper.writer.put(key, wanted)
        keeper.writer.list_done()
        with contextlib.closing(keeper.looker):
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(keeper.reconciler.run(), name="reconciler")
                await keeper.reconciler.synced.wait()
                await body(keeper)
                running.cancel()

    in_namespace(main)


@pytest.mark.parametrize("routing", [Routing.TUNNEL, Routing.DIRECT])
@needs_root
@pytest.mark.kernel
def test_a_route_that_somebody_deletes_or_changes_is_put_back(routing: Routing) -> None:
    async def body(keeper: Kept) -> None:
        sh("ip route del 10.2.1.0/24 table 1995")
        sh("ip -6 route del fd00:10:2:1::/64 table 1995")
        await keeper.put_back()
        sh("ip route flush table 1995")
        sh("ip -6 route flush table 1995")
        await keeper.put_back()
        sh("ip route flush table 1996")
        sh("ip -6 route del fd00:30::2:1 table 1996")
        await keeper.put_back()
        sh("ip route replace 10.2.1.0/24 dev wire table 1995 proto 195 metric 1995")
        await keeper.put_back()

    kept(body, routing)


@needs_root
@pytest.mark.kernel
def test_a_device_that_is_removed_or_taken_down_is_put_back_with_its_routes() -> None:
    async def body(keeper: Kept) -> None:
        sh(f"ip link del {VXLAN.device}")
        await keeper.put_back()
        sh(f"ip link set {VXLAN.device} down")
        await keeper.put_back()

    kept(body)


@needs_root
@pytest.mark.kernel
def test_a_rule_that_somebody_deletes_is_put_back() -> None:
    async def body(keeper: Kept) -> None:
        for family, table in itertools.product(("-4", "-6"), ("1995", "1996")):
            sh(f"ip {family} rule del priority 195 table {table}")
            async with asyncio.timeout(WITHIN):
                while table not in sh(f"ip {family} rule"):  # noqa: ASYNC110 - kernel: polled
                    await asyncio.sleep(0.01)

    kept(body)


@needs_root
@pytest.mark.kernel
def test_what_is_taken_away_just_after_it_was_made_ready_is_made_ready_again() -> None:
    async def body(netlink: Netlink) -> None:
        spoilers = ["ip -6 rule del priority 195 table 1996", f"ip link del {VXLAN.device}"]

        async def prepare() -> None:
            await netlink.ensure_tunnel_device(1450, VXLAN)
            await netlink.ensure_rules(PODS)
            if spoilers:
                sh(spoilers.pop())

        assert await RouteTarget(netlink, VXLAN, prepare, nothing).actual() == {}
        assert "1996" in sh("ip -6 rule")
        sh(f"ip link show {VXLAN.device}")
        assert not spoilers

    in_namespace(body)


@needs_root
@pytest.mark.kernel
def test_making_the_device_and_the_routes_is_not_taken_for_drift() -> None:
    async def body(keeper: Kept) -> None:
        sh("ip route del 10.2.1.0/24 table 1995")  # whatever was heard before has been dealt with
        await keeper.put_back()
        assert (keeper.comparisons, keeper.reconciler.repairs) == (1, 1)

    kept(body)


@needs_root
@pytest.mark.kernel
def test_direct_routes_come_back_with_the_underlay() -> None:
    async def body(keeper: Kept) -> None:
        sh("ip link set eth0 down")
        async with asyncio.timeout(WITHIN):
            while not keeper.reconciler.failures:  # noqa: ASYNC110 - kernel state: polled
                await asyncio.sleep(0.01)
        sh("ip link set eth0 up")
        sh("ip address add fd00:30::1/64 dev eth0 nodad")  # the kernel forgets it
        await keeper.put_back()

    kept(body, Routing.DIRECT)


@needs_root
@pytest.mark.kernel
def test_own_writes_and_other_tables_are_not_drift() -> None:
    async def body(netlink: Netlink) -> None:
        async def prepare() -> None:
            await netlink.ensure_tunnel_device(1450, VXLAN)

        async def tell() -> None:
            async for keys in target.drift():
                heard.append(keys)
                if keys == last:
                    return

        heard: list[Any] = []
        last = {RouteKey(ip_network("10.99.0.0/24"))}
        target = RouteTarget(netlink, VXLAN, prepare, nothing)
        assert await target.actual() == {}
        listener = asyncio.create_task(tell(), name="drift")
        await asyncio.sleep(0)
        routes = {RouteKey(ip_network("10.3.0.0/24")): KernelRoute(VXLAN.device)}
        assert await target.apply(routes, []) == {}
        assert await target.apply({}, routes) == {}
        sh("ip route add 10.60.0.0/24 dev eth0")
        sh("ip route add 10.60.0.0/24 dev eth0 table 1997")
        sh("ip route add 10.99.0.0/24 dev eth0 table 1995")  # the end of what is to be heard
        async with asyncio.timeout(WITHIN):
            await listener
        assert heard == [last]

    in_namespace(body)


@needs_root
@pytest.mark.kernel
def test_another_mtu_of_the_underlay_is_looked_at_at_once() -> None:
    async def body(keeper: Kept) -> None:
        sh("ip link set eth0 mtu 1400")
        async with asyncio.timeout(WITHIN):
            while keeper.comparisons < 2:  # noqa: ASYNC110 - kernel state: polled
                await asyncio.sleep(0.01)
        for _ in range(2):
            sh("ip route del 10.2.1.0/24 table 1995")
            await keeper.put_back()  # so the comparison is over
            sh("ip link set eth0 txqueuelen 500")  # is told as well, and is nothing to us
        assert keeper.comparisons == 2

    kept(body)


@needs_root
@pytest.mark.kernel
@pytest.mark.parametrize("ip", ["10.1.1.1/32", "fd00:10:1:1::1/128"])
def test_an_address_that_comes_or_goes_is_looked_at_at_once(ip: str) -> None:
    """It may be the source of our routes. Not if another device has it, as with some CNIs."""

    async def body(keeper: Kept) -> None:
        async def are(comparisons: int) -> None:
            async with asyncio.timeout(WITHIN):
                while keeper.comparisons < comparisons:  # noqa: ASYNC110 - kernel state: polled
                    await asyncio.sleep(0.01)
            sh("ip route del 10.2.1.0/24 table 1995")
            await keeper.put_back()
            assert keeper.comparisons == comparisons

        sh("ip link add first type veth peer name second")
        sh(f"ip address add {ip} dev first")
        await are(2)
        sh(f"ip address add {ip} dev second")
        sh(f"ip address del {ip} dev first")
        await are(2)
        sh(f"ip address del {ip} dev second")
        await are(3)

    kept(body)


@needs_root
@pytest.mark.kernel
def test_an_underlay_that_is_made_anew_is_looked_at_at_once() -> None:
    async def body(keeper: Kept) -> None:
        sh("ip link del eth0")
        sh("ip link add eth0 type veth peer name wire")
        sh("ip link set eth0 up")
        async with asyncio.timeout(WITHIN):
            while keeper.comparisons < 2:  # noqa: ASYNC110 - kernel state: polled
                await asyncio.sleep(0.01)

    kept(body)

from __future__ import annotations

from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from agent.rows import Cidr, Routing, Routings, TakenLane
from agent.rules.cidrs import CidrKey
from agent.rules.routes import encrypted_routes, pod_sources, routes
from clustermesh.model import ClusterId, ClusterName, Node

EAST, WEST = ClusterName("east"), ClusterName("west")
TUNNEL, DIRECT, NATIVE = Routing


def shown(
    cidr: str,
    ips: list[str],
    *,
    routing: Routing = TUNNEL,
    cluster: ClusterName = WEST,
    is_node: bool = False,
    refused: str = "",
    unrouted: str = "",
    lane: TakenLane | None = None,
) -> str:
    """The route to `cidr` of a node, as a person would print it."""
    key = CidrKey(ip_network(cidr), cluster, "node1")
    addresses = tuple(ip_address(ip) for ip in ips)
    claim = Cidr(cluster, ClusterId(2), "node1", addresses, is_node, refused, unrouted=unrouted)
    rows = {"rule": claim}
    if lane is None:
        found = routes(key, rows, own=EAST, routings=Routings(routing))
    else:
        found = encrypted_routes(
            key, rows, own=EAST, routings=Routings(routing), lane=lambda _: lane
        )
    return "\n".join(
        f"{'from pods ' if to.from_pods else ''}{to} via {r.device or r.node_ip}"
        f" ({r.cluster}/{r.node})"
        for to, r in found.items()
    )


@pytest.mark.parametrize("routing", [TUNNEL, DIRECT])
def test_the_pods_of_another_cluster_are_reached_through_their_node(routing: Routing) -> None:
    assert shown("10.2.0.0/24", ["192.0.2.1"], routing=routing) == (
        "10.2.0.0/24 via 192.0.2.1 (west/node1)"
    )


def test_a_tunnel_carries_both_families_over_ipv4() -> None:
    both = ["2001:db8::1", "192.0.2.1"]
    assert shown("10.2.0.0/24", both) == "10.2.0.0/24 via 192.0.2.1 (west/node1)"
    assert shown("fd00:2::/64", both) == "fd00:2::/64 via 192.0.2.1 (west/node1)"
    assert shown("10.2.0.0/24", both[:1]) == "10.2.0.0/24 via 2001:db8::1 (west/node1)"


def test_a_direct_route_needs_a_next_hop_of_its_own_family() -> None:
    both = ["2001:db8::1", "192.0.2.1"]
    assert shown("10.2.0.0/24", both, routing=DIRECT) == "10.2.0.0/24 via 192.0.2.1 (west/node1)"
    assert shown("fd00:2::/64", both, routing=DIRECT) == "fd00:2::/64 via 2001:db8::1 (west/node1)"
    assert shown("fd00:2::/64", ["192.0.2.1"], routing=DIRECT) == ""


@pytest.mark.parametrize("routing", [TUNNEL, DIRECT])
def test_there_is_no_route_where_none_is_wanted(routing: Routing) -> None:
    assert shown("10.1.0.0/24", ["192.0.2.1"], routing=routing, cluster=EAST) == ""
    assert shown("10.2.0.0/24", ["192.0.2.1"], routing=routing, refused="overlaps") == ""
    assert shown("10.2.0.0/24", [], routing=routing) == ""


def test_the_network_itself_is_trusted_to_find_pods_when_routing_is_native() -> None:
    assert shown("10.2.0.0/24", ["192.0.2.1"], routing=NATIVE) == (
        "10.2.0.0/24 via None (west/node1)"
    )
    assert shown("10.2.0.0/24", [], routing=NATIVE) == "10.2.0.0/24 via None (west/node1)"


def test_each_cluster_has_the_routing_that_is_wanted_for_it() -> None:
    routings = Routings(TUNNEL, {WEST: DIRECT})
    assert [routings.to(ClusterName(name)) for name in ("west", "north")] == [DIRECT, TUNNEL]
    assert routings.in_use == {TUNNEL, DIRECT}


def test_every_pod_cidr_of_a_node_is_routed() -> None:
    for cidr in ("10.2.0.0/24", "10.2.7.0/24", "fd00:2::/64"):
        assert shown(cidr, ["192.0.2.1"]) == f"{cidr} via 192.0.2.1 (west/node1)"


LANE = TakenLane("cm_wg00", ip_address("192.0.2.1"))


def test_what_is_wrapped_or_encrypted_has_a_way_for_pods_to_the_node_itself() -> None:
    node = partial(shown, "192.0.2.1/32", ["192.0.2.1"], is_node=True)
    assert node() == "from pods 192.0.2.1/32 via 192.0.2.1 (west/node1)"
    for routing in Routing:
        assert node(routing=routing, lane=LANE) == (
            "from pods 192.0.2.1/32 via cm_wg00 (west/node1)"
        )


def test_where_nothing_is_wrapped_nodes_are_reached_as_without_us() -> None:
    for routing in (DIRECT, NATIVE):
        assert shown("192.0.2.1/32", ["192.0.2.1"], routing=routing, is_node=True) == ""


@pytest.mark.parametrize("lane", [None, LANE])
def test_there_is_no_way_to_a_node_that_is_ours_refused_or_not_to_be_routed(
    lane: TakenLane | None,
) -> None:
    node = partial(shown, "192.0.2.1/32", ["192.0.2.1"], is_node=True, lane=lane)
    assert node(cluster=EAST) == ""
    assert node(refused="overlaps") == ""
    assert node(unrouted="it is our etcd") == ""


def test_a_second_address_of_a_node_is_reached_through_its_first() -> None:
    both = ["192.0.2.1", "198.51.100.1", "2001:db8::1"]
    for address in ("198.51.100.1/32", "2001:db8::1/128"):
        assert shown(address, both, is_node=True) == (
            f"from pods {address} via 192.0.2.1 (west/node1)"
        )


def test_a_node_among_its_own_pods_has_no_ways_for_those() -> None:
    """What it wraps is sent from its own address, and would be led into the tunnel again."""
    cidrs = tuple(map(ip_network, ("10.1.0.0/24", "10.1.1.0/24", "fd00:1::/64")))
    for own, expected in (("192.0.2.9", cidrs), ("10.1.1.7", (cidrs[0], cidrs[2]))):
        node = Node(EAST, ClusterId(1), "node1", (("InternalIP", ip_address(own)),), cidrs)
        assert pod_sources(node) == expected
    assert pod_sources(None) == ()

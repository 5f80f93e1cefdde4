from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from agent.rows import Cidr, Routing, Routings
from agent.rules.cidrs import CidrKey
from agent.rules.routes import routes
from clustermesh.model import ClusterId, ClusterName

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
) -> str:
    """The route to `cidr` of a node, as a person would print it."""
    key = CidrKey(ip_network(cidr), cluster, "node1")
    addresses = tuple(ip_address(ip) for ip in ips)
    claim = Cidr(cluster, ClusterId(2), "node1", addresses, is_node, refused)
    found = routes(key, {"rule": claim}, own=EAST, routings=Routings(routing))
    return "\n".join(f"{to} via {r.node_ip} ({r.cluster}/{r.node})" for to, r in found.items())


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
    assert shown("192.0.2.1/32", ["192.0.2.1"], routing=routing, is_node=True) == ""
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

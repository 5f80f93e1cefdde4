from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from agent.rows import Cidr
from agent.rules.cidrs import CidrKey
from agent.rules.routes import routes
from clustermesh.model import ClusterId, ClusterName

EAST, WEST = ClusterName("east"), ClusterName("west")


def shown(
    cidr: str,
    ips: list[str],
    *,
    direct: bool = False,
    cluster: ClusterName = WEST,
    is_node: bool = False,
    refused: str = "",
) -> str:
    """The route to `cidr` of a node, as a person would print it."""
    key = CidrKey(ip_network(cidr), cluster, "node1")
    addresses = tuple(ip_address(ip) for ip in ips)
    claim = Cidr(cluster, ClusterId(2), "node1", addresses, is_node, refused)
    found = routes(key, {"rule": claim}, own=EAST, direct=direct)
    return "\n".join(f"{to} via {r.node_ip} ({r.cluster}/{r.node})" for to, r in found.items())


@pytest.mark.parametrize("direct", [False, True])
def test_the_pods_of_another_cluster_are_reached_through_their_node(direct: bool) -> None:
    assert shown("10.2.0.0/24", ["192.0.2.1"], direct=direct) == (
        "10.2.0.0/24 via 192.0.2.1 (west/node1)"
    )


def test_a_tunnel_carries_both_families_over_ipv4() -> None:
    both = ["2001:db8::1", "192.0.2.1"]
    assert shown("10.2.0.0/24", both) == "10.2.0.0/24 via 192.0.2.1 (west/node1)"
    assert shown("fd00:2::/64", both) == "fd00:2::/64 via 192.0.2.1 (west/node1)"
    assert shown("10.2.0.0/24", both[:1]) == "10.2.0.0/24 via 2001:db8::1 (west/node1)"


def test_a_direct_route_needs_a_next_hop_of_its_own_family() -> None:
    both = ["2001:db8::1", "192.0.2.1"]
    assert shown("10.2.0.0/24", both, direct=True) == "10.2.0.0/24 via 192.0.2.1 (west/node1)"
    assert shown("fd00:2::/64", both, direct=True) == "fd00:2::/64 via 2001:db8::1 (west/node1)"
    assert shown("fd00:2::/64", ["192.0.2.1"], direct=True) == ""


@pytest.mark.parametrize("direct", [False, True])
def test_there_is_no_route_where_none_is_wanted(direct: bool) -> None:
    assert shown("10.1.0.0/24", ["192.0.2.1"], direct=direct, cluster=EAST) == ""
    assert shown("192.0.2.1/32", ["192.0.2.1"], direct=direct, is_node=True) == ""
    assert shown("10.2.0.0/24", ["192.0.2.1"], direct=direct, refused="overlaps") == ""
    assert shown("10.2.0.0/24", [], direct=direct) == ""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from agent.rows import Cidr
from agent.rules.cidrs import CidrKey
from agent.rules.ipcache import cidr_entries, endpoint_entries
from clustermesh.model import ClusterId, ClusterName, Endpoint, IdentityId, IPAddress, ObjectName

EAST, WEST = ClusterName("east"), ClusterName("west")
IDS = {EAST: ClusterId(1), WEST: ClusterId(2)}


def claim(cluster: ClusterName, *, is_node: bool = False, refused: str = "") -> Cidr:
    node_ip = ip_address(f"192.0.2.{IDS[cluster]}")
    return Cidr(cluster, IDS[cluster], "node1", (node_ip,), is_node, refused)


def of_cidr(cidr: str, row: Cidr) -> str:
    """The entry of a CIDR as a person would print it."""
    key = CidrKey(ip_network(cidr), row.cluster, row.node)
    found = cidr_entries(key, {"rule": row}, own=EAST)
    return "\n".join(
        f"{to} identity {e.identity} cluster {e.cluster_id} via {e.node_ip}"
        for to, e in found.items()
    )


def of_endpoint(ip: str, said: dict[ClusterName, int], owner: Cidr | None) -> str:
    """The entry of an address, for which each cluster says an identity."""
    address = ip_address(ip)
    rows: dict[str, Endpoint] = {name: endpoint(address, number) for name, number in said.items()}
    found = endpoint_entries(address, rows, own=EAST, owner=lambda _: owner)
    return "\n".join(
        f"{to} identity {e.identity} cluster {e.cluster_id} via {e.node_ip}"
        for to, e in found.items()
    )


def endpoint(ip: IPAddress, identity: int) -> Endpoint:
    elsewhere = ip_address("198.51.100.1")  # what a row says of its node is not believed
    return Endpoint(ip, elsewhere, IdentityId(identity), ObjectName("default", "web"))


def test_an_unknown_pod_of_another_cluster_is_the_world_and_an_unknown_node_a_remote_node() -> None:
    assert of_cidr("10.2.0.0/24", claim(WEST)) == ("10.2.0.0/24 identity 2 cluster 2 via 192.0.2.2")
    assert of_cidr("192.0.2.2/32", claim(WEST, is_node=True)) == (
        "192.0.2.2/32 identity 6 cluster 2 via 192.0.2.2"
    )


def test_our_own_cidrs_and_refused_ones_have_no_entry() -> None:
    assert of_cidr("10.1.0.0/24", claim(EAST)) == ""
    assert of_cidr("192.0.2.1/32", claim(EAST, is_node=True)) == ""
    assert of_cidr("10.2.0.0/24", claim(WEST, refused="overlaps")) == ""


def test_a_remote_pod_is_reached_through_the_node_that_its_address_belongs_to() -> None:
    assert of_endpoint("10.2.0.7", {WEST: 0x20001}, claim(WEST)) == (
        "10.2.0.7/32 identity 131073 cluster 2 via 192.0.2.2"
    )
    assert of_endpoint("fd00:2::7", {WEST: 0x20001}, claim(WEST)) == (
        "fd00:2::7/128 identity 131073 cluster 2 via 192.0.2.2"
    )


def test_a_pod_of_our_own_is_reached_by_the_cni() -> None:
    assert of_endpoint("10.1.0.7", {EAST: 0x10001}, claim(EAST)) == (
        "10.1.0.7/32 identity 65537 cluster 1 via None"
    )


def test_what_a_cluster_says_of_an_address_that_is_not_its_own_counts_for_nothing() -> None:
    assert of_endpoint("10.1.0.7", {WEST: 0x20001, EAST: 0x10001}, claim(EAST)) == (
        "10.1.0.7/32 identity 65537 cluster 1 via None"
    )
    assert of_endpoint("10.1.0.7", {WEST: 0x20001}, claim(EAST)) == ""
    assert of_endpoint("10.9.0.7", {WEST: 0x20001}, None) == ""

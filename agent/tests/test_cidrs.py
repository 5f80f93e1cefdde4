"""Whose an address is: small tables first, then random worlds against brute force."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.rows import Cidr, Reserved
from agent.rules.cidrs import CidrKey, Owners, cidrs
from clustermesh.model import ClusterId, ClusterName, IPNetwork, Node
from clustermesh.state import Table

EAST = ClusterName("east")
IDS = {"east": 5, "west": 2, "north": 3}


def node(place: str, *pod_cidrs: str, at: Iterable[str] = ()) -> Node:
    """The node `cluster/name`; `at` are InternalIPs, or ExternalIPs with a leading `+`."""
    cluster, _, name = place.partition("/")
    return Node(
        cluster=ClusterName(cluster),
        cluster_id=ClusterId(IDS[cluster]),
        name=name,
        addresses=tuple(
            ("ExternalIP" if ip[0] == "+" else "InternalIP", ip_address(ip.strip("+"))) for ip in at
        ),
        pod_cidrs=tuple(map(ip_network, pod_cidrs)),
    )


def show(rows: Mapping[CidrKey, Cidr]) -> list[str]:
    """A line for each claim; own cluster first, then by id."""
    return [f"{key}: {row.refused}" if row.refused else str(key) for key, row in rows.items()]


def shown(*nodes: Node) -> list[str]:
    return show(cidrs(nodes, EAST))


def test_claims_that_do_not_overlap_all_stand() -> None:
    assert shown(
        node("west/a", "10.2.0.0/24", "fd00:2::/64", at=["192.0.2.2", "+203.0.113.2"]),
        node("east/a", "10.1.0.0/24", at=["192.0.2.1"]),
    ) == [
        "10.1.0.0/24 of east/a",
        "192.0.2.1/32 of east/a",
        "10.2.0.0/24 of west/a",
        "192.0.2.2/32 of west/a",
        "203.0.113.2/32 of west/a",
        "fd00:2::/64 of west/a",
    ]


def test_our_own_wins_even_against_a_lower_id() -> None:
    assert shown(node("west/a", "10.1.0.0/24"), node("east/a", "10.1.0.0/24")) == [
        "10.1.0.0/24 of east/a",
        "10.1.0.0/24 of west/a: overlaps 10.1.0.0/24 of east/a",
    ]


def test_of_two_others_the_lower_id_wins() -> None:
    assert shown(node("north/a", "10.7.0.0/24"), node("west/z", "10.7.0.0/24")) == [
        "10.7.0.0/24 of west/z",
        "10.7.0.0/24 of north/a: overlaps 10.7.0.0/24 of west/z",
    ]


def test_a_claim_inside_of_another_is_refused_and_one_around_it_too() -> None:
    assert shown(
        node("east/a", "10.1.4.0/24"),
        node("west/inside", "10.1.4.128/25"),
        node("west/around", "10.1.0.0/16"),
        node("west/beside", "10.1.5.0/24"),
    ) == [
        "10.1.4.0/24 of east/a",
        "10.1.0.0/16 of west/around: overlaps 10.1.4.0/24 of east/a",
        "10.1.4.128/25 of west/inside: overlaps 10.1.4.0/24 of east/a",
        "10.1.5.0/24 of west/beside",
    ]


def test_what_is_refused_stands_in_nobodys_way() -> None:
    assert shown(
        node("east/a", "10.1.0.0/24"), node("west/a", "10.0.0.0/8"), node("north/a", "10.7.0.0/24")
    ) == [
        "10.1.0.0/24 of east/a",
        "10.0.0.0/8 of west/a: overlaps 10.1.0.0/24 of east/a",
        "10.7.0.0/24 of north/a",
    ]


def test_a_pod_cidr_cannot_take_in_another_clusters_node() -> None:
    assert shown(node("east/a", at=["192.0.2.1"]), node("west/a", "192.0.2.0/24")) == [
        "192.0.2.1/32 of east/a",
        "192.0.2.0/24 of west/a: overlaps 192.0.2.1/32 of east/a",
    ]


def test_within_a_cluster_cidrs_may_nest_but_not_be_equal() -> None:
    assert shown(
        node("west/a", "10.2.0.0/16"), node("west/b", "10.2.1.0/24"), node("west/c", "10.2.1.0/24")
    ) == [
        "10.2.0.0/16 of west/a",
        "10.2.1.0/24 of west/b",
        "10.2.1.0/24 of west/c: overlaps 10.2.1.0/24 of west/b",
    ]


def test_a_node_that_names_an_address_twice_is_not_in_its_own_way() -> None:
    assert shown(node("west/a", "10.2.0.0/24", "10.2.0.0/24", at=["192.0.2.2", "+192.0.2.2"])) == [
        "10.2.0.0/24 of west/a",
        "192.0.2.2/32 of west/a",
    ]


def test_a_node_is_not_reached_at_an_address_that_belongs_to_another() -> None:
    rows = cidrs(
        [
            node("east/a", "10.1.0.0/24", at=["192.0.2.1"]),
            node("west/a", "10.2.0.0/24", at=["192.0.2.1", "2001:db8::2"]),
            node("west/b", "10.2.1.0/24", at=["10.1.0.9"]),
        ],
        EAST,
    )
    ips = {key.node: row.node_ips for key, row in rows.items() if key.cluster == "west"}
    assert ips == {"a": (ip_address("2001:db8::2"),), "b": ()}


def test_the_families_do_not_meet() -> None:
    # ::a00:0/104 begins with the number that 10.0.0.0/8 begins with.
    assert len(show(cidrs([node("east/a", "10.0.0.0/8"), node("west/a", "fd00::/64")], EAST))) == 2


# --- random worlds -------------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> IPNetwork:
    """Few addresses, so that many overlap."""
    base = draw(st.sampled_from(["10.0.0.0", "fd00::"]))
    address = ip_address(base) + draw(st.integers(0, 31))
    length = address.max_prefixlen - draw(st.integers(0, 5))
    return ip_network((address, length), strict=False)


@st.composite
def worlds(draw: st.DrawFn) -> list[Node]:
    places = draw(st.sets(st.tuples(st.sampled_from(sorted(IDS)), st.sampled_from("abc"))))
    return [
        Node(
            cluster=ClusterName(cluster),
            cluster_id=ClusterId(IDS[cluster]),
            name=name,
            addresses=tuple(
                ("InternalIP", network.network_address)
                for network in draw(st.lists(networks(), max_size=2))
            ),
            pod_cidrs=tuple(draw(st.lists(networks(), max_size=3))),
        )
        for cluster, name in sorted(places)
    ]


@given(worlds().flatmap(lambda nodes: st.tuples(st.just(nodes), st.permutations(nodes))))
def test_the_order_in_which_nodes_are_heard_of_makes_no_difference(
    orders: tuple[list[Node], list[Node]],
) -> None:
    first, second = (cidrs(nodes, EAST) for nodes in orders)
    assert first == second


@given(worlds())
def test_accepted_claims_of_two_clusters_never_overlap_and_refused_ones_always_do(
    nodes: list[Node],
) -> None:
    rows = cidrs(nodes, EAST)
    accepted = [key for key, row in rows.items() if not row.refused]
    for key, row in rows.items():
        in_the_way = [
            other
            for other in accepted
            if other != key
            and other.cidr.version == key.cidr.version
            and other.cidr.overlaps(key.cidr)
            and (other.cluster != key.cluster or other.cidr == key.cidr)
        ]
        assert bool(in_the_way) is bool(row.refused)
        if row.refused:
            assert row.refused in {f"overlaps {other}" for other in in_the_way}
            assert any(rank(other) <= rank(key) for other in in_the_way)


def rank(key: CidrKey) -> tuple[bool, int]:
    return key.cluster != EAST, IDS[key.cluster]


@given(st.lists(worlds(), min_size=1, max_size=5))
def test_owners_follow_any_history(history: list[list[Node]]) -> None:
    table: Table[CidrKey, Cidr] = Table("cidrs")
    writer = table.writer("rule")
    owners = Owners(table)
    for nodes in history:
        writer.replace(cidrs(nodes, EAST))
        late = Owners(table)
        for base in ("10.0.0.0", "fd00::"):
            for number in range(40):
                ip = ip_address(base) + number
                fitting = [
                    (key.cidr.prefixlen, row)
                    for key, row in writer.own.items()
                    if not row.refused and ip in key.cidr
                ]
                expected = max(fitting, key=lambda item: item[0], default=(0, None))[1]
                assert owners.owner(ip) == late.owner(ip) == expected


def test_nobody_else_has_the_networks_that_we_are_on() -> None:
    nodes = [
        node("east/a", "10.1.0.0/24", at=["192.0.2.1"]),
        node("west/a", "192.0.2.128/25", "10.2.0.0/24", at=["192.0.2.2"]),
    ]
    reserved = [(ip_network("192.0.2.0/24"), Reserved("the network of eth0"))]
    assert show(cidrs(nodes, EAST, reserved)) == [
        "10.1.0.0/24 of east/a",
        "192.0.2.1/32 of east/a",
        "10.2.0.0/24 of west/a",
        "192.0.2.2/32 of west/a",
        "192.0.2.128/25 of west/a: overlaps 192.0.2.0/24, the network of eth0",
    ]


def test_an_etcd_may_be_among_its_own_clusters_pods_only() -> None:
    reserved = [(ip_network("10.9.0.7"), Reserved("the etcd of north", ClusterName("north")))]
    nodes = [node("west/a", "10.8.0.0/15"), node("north/a", "10.9.0.0/24")]
    assert show(cidrs(nodes, EAST, reserved)) == [
        "10.8.0.0/15 of west/a: overlaps 10.9.0.7/32, the etcd of north",
        "10.9.0.0/24 of north/a",
    ]


def test_what_is_not_in_the_mesh_is_refused_when_the_mesh_has_limits() -> None:
    nodes = [node("east/a", "172.16.0.0/24"), node("west/a", "8.8.8.0/24", "10.2.0.0/24")]
    assert show(cidrs(nodes, EAST, allowed=[ip_network("10.0.0.0/8")])) == [
        "172.16.0.0/24 of east/a",
        "8.8.8.0/24 of west/a: is not in --mesh-cidrs",
        "10.2.0.0/24 of west/a",
    ]


def unrouted(*nodes: Node, **more: Any) -> dict[str, str]:
    """Why pods are not led to which of the addresses that other clusters' nodes have."""
    return {
        str(key.cidr.network_address): row.unrouted
        for key, row in cidrs(nodes, EAST, **more).items()
        if row.is_node and row.cluster != EAST
    }


def test_pods_are_led_to_what_is_a_nodes_own_inside_of_the_network() -> None:
    assert unrouted(node("west/a", at=["192.0.2.2", "2001:db8::2", "+203.0.113.2"])) == {
        "192.0.2.2": "",
        "2001:db8::2": "",
        "203.0.113.2": "it is no InternalIP",
    }


def test_the_address_of_a_node_behind_a_nat_may_be_somebody_elses_here() -> None:
    behind = node("west/a", at=["192.168.0.2"])
    behind = msgspec.structs.replace(behind, external_address=ip_address("203.0.113.2"))
    assert unrouted(behind)["192.168.0.2"] == (
        "its node is reached at 203.0.113.2, and here it may be another's"
    )


def test_no_etcd_is_reached_by_a_way_that_is_known_from_it() -> None:
    """Not even its own cluster's, on whose node it is."""
    reserved = [
        (ip_network("192.0.2.0/24"), Reserved("the network of eth0")),
        (ip_network("192.0.2.2"), Reserved("the etcd of west", ClusterName("west"))),
    ]
    nodes = [node("west/a", at=["192.0.2.2"]), node("west/b", at=["192.0.2.3"])]
    assert unrouted(*nodes, reserved=reserved) == {
        "192.0.2.2": "it is the etcd of west, which has to be reached before there is a way",
        "192.0.2.3": "",
    }


def test_nodes_are_led_to_only_where_the_mesh_may_be() -> None:
    nodes = [node("west/a", at=["192.0.2.2", "10.9.0.2"])]
    assert unrouted(*nodes, allowed=[ip_network("10.0.0.0/8")]) == {
        "192.0.2.2": "it is not in --mesh-cidrs",
        "10.9.0.2": "",
    }


def test_the_claims_of_5000_nodes_are_judged_within_a_second_in_whichever_order() -> None:
    def nodes(clusters: Iterable[str]) -> Iterator[Node]:
        for number, cluster in enumerate(clusters):
            for n in range(number * 2500, number * 2500 + 2500):
                cidrs = f"10.{n // 256}.{n % 256}.0/24", f"fd00:{n:x}::/64"
                yield node(f"{cluster}/node{n}", *cidrs, at=[f"172.16.{n // 256}.{n % 256}"])

    for clusters in (("east", "west"), ("west", "east")):
        everybody = list(nodes(clusters))
        begin = time.process_time()
        rows = cidrs(everybody, EAST)
        assert time.process_time() - begin < 1
        assert (len(rows), sum(bool(row.refused) for row in rows.values())) == (15000, 0)

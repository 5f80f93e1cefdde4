from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from agent.rows import Cidr
from agent.rules.cidrs import CidrKey
from agent.rules.probes import probes
from clustermesh.model import ClusterId, ClusterName, Node

EAST, WEST = ClusterName("east"), ClusterName("west")


def node(
    cluster: ClusterName, *cidrs: str, name: str = "node1", health: tuple[str, ...] = ()
) -> Node:
    return Node(
        cluster=cluster,
        cluster_id=ClusterId(1 if cluster == EAST else 2),
        name=name,
        addresses=(("InternalIP", ip_address("192.0.2.2")),),
        pod_cidrs=tuple(ip_network(cidr) for cidr in cidrs),
        health_ips=tuple(ip_address(ip) for ip in health),
    )


OWN = node(EAST, "10.1.0.0/24", "fd00:1::/64")


def shown(
    *others: Node, own: Node = OWN, sample: int = 1000, encrypts: bool = False, **more: Any
) -> str:
    """The ways to all nodes, as a person would print them."""
    claims = {
        CidrKey(cidr, n.cluster, n.name): Cidr(
            n.cluster,
            n.cluster_id,
            n.name,
            (ip_address("192.0.2.2"),),
            **more,
        )
        for n in (own, *others)
        for cidr in n.pod_cidrs
    }
    found = probes([own, *others], claims, EAST, own.name, encrypts=encrypts, sample=sample)
    return "\n".join(
        f"{key}: {p.address} at {p.outside if encrypts else p.node_ip}"
        if p.address
        else f"{key}: {p.refused or p.unprobed.replace('1000', str(sample))}"
        for key, p in found.items()
    )


def test_a_node_with_an_address_outside_is_asked_there_where_wireguard_sends() -> None:
    there = node(WEST, "10.2.0.0/24", health=("10.2.0.1",))
    external = ip_address("198.51.100.9")
    way = "west/node1 over IPv4: 10.2.0.1 at"
    assert shown(there, external=external, encrypts=True) == f"{way} 198.51.100.9"
    assert shown(there, external=external) == f"{way} 192.0.2.2"


def test_a_node_is_probed_in_both_families_at_its_addresses_among_its_pods() -> None:
    both = node(WEST, "10.2.0.0/24", "fd00:2::/64", health=("10.2.0.1", "fd00:2::1"))
    assert shown(both) == (
        "west/node1 over IPv4: 10.2.0.1 at 192.0.2.2\nwest/node1 over IPv6: fd00:2::1 at 192.0.2.2"
    )


def test_a_node_with_two_addresses_is_asked_where_its_packets_go() -> None:
    """What is wrapped goes over IPv4; else it is of the version that it goes over."""
    west = node(WEST, "10.2.0.0/24", "fd00:2::/64", health=("10.2.0.1", "fd00:2::1"))
    ips = (ip_address("192.0.2.2"), ip_address("2001:db8::2"))
    claims = {
        CidrKey(cidr, WEST, west.name): Cidr(WEST, west.cluster_id, west.name, ips)
        for cidr in west.pod_cidrs
    }
    found = probes([OWN, west], claims, EAST, OWN.name, encrypts=False)
    assert [(key.version, probe.node_ip, probe.outside) for key, probe in found.items()] == [
        (4, ips[0], ips[0]),
        (6, ips[1], ips[0]),
    ]


def test_there_is_no_way_of_a_family_that_one_end_does_not_have() -> None:
    four = node(WEST, "10.2.0.0/24", health=("10.2.0.1",))
    six = node(EAST, "fd00:1::/64")
    assert shown(four) == "west/node1 over IPv4: 10.2.0.1 at 192.0.2.2"
    assert shown(four, own=six) == ""
    assert shown(node(EAST, "10.1.1.0/24", name="node2", health=("10.1.1.1",))) == ""


def test_what_is_not_probed_says_why() -> None:
    assert shown(node(WEST, "10.2.0.0/24")) == (
        "west/node1 over IPv4: it publishes no address in its pod CIDRs"
    )
    assert shown(node(WEST, "10.2.0.0/24", health=("10.9.0.1",))) == (
        "west/node1 over IPv4: its 10.9.0.1 is not in its pod CIDRs"
    )


@pytest.mark.parametrize("health", [(), ("10.2.0.1",), ("10.9.0.1",)])
def test_a_cidr_that_nothing_may_be_sent_to_is_a_way_that_fails(health: tuple[str, ...]) -> None:
    west = node(WEST, "10.2.0.0/24", health=health)
    said = "west/node1 over IPv4: 10.2.0.0/24 is refused: overlaps it"
    assert shown(west, refused="overlaps it") == said
    assert shown(west, closed="overlaps it") == said


def test_of_too_many_nodes_each_node_probes_a_sample_of_its_own() -> None:
    def probed(own_name: str) -> set[str]:
        own = node(EAST, "10.1.0.0/24", name=own_name)
        lines = shown(*others, own=own, sample=10).splitlines()
        assert sum("not among the 10 of this node" in line for line in lines) == 30
        return {line.partition(" ")[0] for line in lines if " at " in line}

    others = [
        node(WEST, f"10.2.{n}.0/24", name=f"node{n}", health=(f"10.2.{n}.1",)) for n in range(40)
    ]
    samples = [probed(f"ours{n}") for n in range(40)]
    assert {len(sample) for sample in samples} == {10}
    assert samples[0] == probed("ours0")
    assert len(set[str]().union(*samples)) == 40

"""A sandbox on paper."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from clustermesh.errors import UserError
from clustermesh.sandbox.model import UNDERLAY_NETWORKS, Node, Sandbox, sandbox


def test_a_sandbox_reads_like_a_plan() -> None:
    lines = []
    for cluster in sandbox("plan", nodes=1, pods=1).members:
        services = cluster.service_cidrs
        lines.append(f"{cluster.name} {cluster.id} {services.v4} {services.v6}")
        lines.append(f"  control {cluster.control.addresses.v4} {cluster.control.addresses.v6}")
        for node in cluster.nodes:
            lines.append(f"  {node.name} {node.addresses.v4} {node.addresses.v6}")
            lines.append(f"    pods {node.pod_cidrs.v4} {node.pod_cidrs.v6}")
            lines += [f"    {p.name} {p.addresses.v4} {p.addresses.v6}" for p in node.pods]
    assert lines == [
        "cluster1 1 10.101.0.0/16 fd00:110:1::/112",
        "  control 172.30.1.254 fd00:30::1:254",
        "  node1 172.30.1.1 fd00:30::1:1",
        "    pods 10.1.1.0/24 fd00:10:1:1::/64",
        "    pod1 10.1.1.11 fd00:10:1:1::11",
        "cluster2 2 10.102.0.0/16 fd00:110:2::/112",
        "  control 172.30.2.254 fd00:30::2:254",
        "  node1 172.30.2.1 fd00:30::2:1",
        "    pods 10.2.1.0/24 fd00:10:2:1::/64",
        "    pod1 10.2.1.11 fd00:10:2:1::11",
    ]


def test_the_largest_sandbox_has_no_address_twice_and_no_name_too_long() -> None:
    largest = sandbox(clusters=99, nodes=200, pods=2)
    places = list(largest.places())
    addresses = [address for place in places for address in place.addresses]
    assert len(set(addresses)) == len(addresses)
    assert len({largest.namespace(place) for place in places}) == len(places)
    networks = [n for cluster in largest.members for n in cluster.service_cidrs]
    networks += [n for cluster in largest.members for node in cluster.nodes for n in node.pod_cidrs]
    networks += UNDERLAY_NETWORKS
    for version in (4, 6):
        ordered = sorted((n for n in networks if n.version == version), key=lambda n: n[0])
        assert not [a for a, b in pairwise(ordered) if a.overlaps(b)]
    devices = [c.control.port for c in largest.members]
    devices += [node.port for cluster in largest.members for node in cluster.nodes]
    assert len(set(devices)) == len(devices)
    assert max(map(len, devices)) <= 15


def test_every_address_is_inside_the_network_that_it_belongs_to() -> None:
    for place in sandbox(clusters=3, nodes=3, pods=200).places():
        if isinstance(place, Node):
            inside = [(place.addresses, UNDERLAY_NETWORKS), (place.gateways, place.pod_cidrs)]
            inside += [(pod.addresses, place.pod_cidrs) for pod in place.pods]
            for addresses, networks in inside:
                assert addresses.v4 in networks.v4
                assert addresses.v6 in networks.v6


def test_sandboxes_of_different_names_share_no_path() -> None:
    one, two = sandbox("a", root=Path("/r")), sandbox("a-b", root=Path("/r"))

    def paths(of: Sandbox) -> set[str]:
        own = [str(of.namespace(place)) for place in of.places()]
        return {*own, *(str(of.cgroup_of(place)) for place in of.places())}

    assert not paths(one) & paths(two)
    assert all("/a/" in path for path in paths(one))


def test_a_place_is_found_by_its_name_and_another_name_is_answered_with_what_there_is() -> None:
    small = sandbox(clusters=1, nodes=2, pods=1)
    for place in small.places():
        assert small.find(place.place) is place
    with pytest.raises(UserError, match=r"no cluster1/node3 .* cluster1/node1, cluster1/node2"):
        small.find("cluster1/node3")
    with pytest.raises(UserError, match=r"no cluster7 .*there are cluster1"):
        small.find("cluster7/node1")


def test_a_setting_is_for_all_agents_or_for_those_of_a_cluster() -> None:
    given = ["mtu=1400", "cluster2:cluster-routing=cluster1=direct", "listen=127.0.0.1:1"]
    made = sandbox(agent=given)
    assert {cluster.name: list(made.settings(cluster)) for cluster in made.members} == {
        "cluster1": ["mtu=1400", "listen=127.0.0.1:1"],
        "cluster2": ["mtu=1400", "cluster-routing=cluster1=direct", "listen=127.0.0.1:1"],
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": "A/B"}, "'A/B' is no name for a sandbox"),
        ({"name": ".."}, "'..' is no name"),
        ({"name": "x" * 33}, "is no name for a sandbox"),
        ({"clusters": 0}, "0 clusters are out of range (choose 1-99)"),
        ({"nodes": 201}, "201 nodes are out of range (choose 1-200)"),
        ({"pods": -1}, "-1 pods are out of range (choose 0-200)"),
        ({"routing": "magic"}, "'magic' is no routing (choose tunnel, direct or native)"),
        ({"api": "magic"}, "'magic' is no Kubernetes API (choose dir or kube)"),
        ({"agent": ["mtu"]}, "'mtu' is no setting of an agent (write NAME=VALUE, or CLUSTER:NAME="),
        ({"agent": ["cluster9:mtu=1400"]}, "there is no cluster9 in sandbox default"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        sandbox(**wrong)  # type: ignore[arg-type]
    assert said in str(refused.value)

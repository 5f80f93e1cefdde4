"""What `connect` finds wrong, and what it would change: rows in, lines out."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from clustermesh.cli.contexts.checks import findings
from clustermesh.cli.contexts.installation import endpoints_of
from clustermesh.cli.contexts.objects import Service
from clustermesh.cli.contexts.options import parse_endpoints
from clustermesh.cli.contexts.plan import (
    Connect,
    Link,
    connecting,
    disconnecting,
    left_to_do,
    links,
    peer_file,
    server_name,
)
from clustermesh.cli.contexts.rows import Authority, ClusterRow, NodeRow
from clustermesh.errors import UserError
from clustermesh.model import ClusterName

NUMBERS = {"east": 1, "west": 2, "north": 3}
CA = Authority("CA", "aa", "CA\n")


def authority(name: str) -> Authority:
    return Authority(f"CA {name}", name, f"{name}\n")


def node(name: str, address: str, *pod_cidrs: str) -> NodeRow:
    return NodeRow(name, (ip_address(address),), tuple(map(ip_network, pod_cidrs)))


def cluster(name: str, /, **fields: Any) -> ClusterRow:
    """A cluster that shares its CA, and nothing else, with the others."""
    number = NUMBERS[name]
    ca = fields.pop("authority", CA)
    usual: dict[str, Any] = {
        "context": f"k-{name}",
        "namespace": "kube-system",
        "name": ClusterName(name),
        "id": number,
        "version": "1",
        "user": f"remote-{name}",
        "nodes": (node("n1", f"192.0.2.{number}", f"10.{number}.0.0/24"),),
        "service_cidrs": (ip_network(f"10.9{number}.0.0/16"),),
        "endpoints": (f"192.0.2.{number}:32379",),
        "server_names": ("*.mesh.cilium.io", "127.0.0.1"),
        "authority": ca,
        "trusted": (ca,),
    }
    return ClusterRow(**{**usual, **fields})


EAST, WEST, NORTH = map(cluster, NUMBERS)
BOTH = links("k-east", ["k-west"], "bidirectional")


def found(one: ClusterRow, other: ClusterRow) -> list[str]:
    return [
        f"{'error' if f.is_fatal else 'warning'}: {f.text}" for f in findings([one, other], BOTH)
    ]


def test_nothing_speaks_against_clusters_that_have_nothing_in_common() -> None:
    assert found(EAST, WEST) == []


PAIR = "east (k-east) and west (k-west)"


@pytest.mark.parametrize(
    ("west", "line"),
    [
        ({"id": 1}, f"error: {PAIR} both have the cluster id 1"),
        (
            {"max_connected_clusters": 511},
            f"error: {PAIR} disagree about how many clusters there can be: 255 and 511",
        ),
        ({"routing": "direct"}, f"error: {PAIR} route differently: tunnel and direct"),
        ({"encryption": "wireguard"}, f"error: {PAIR} encrypt differently: none and wireguard"),
        ({"version": "2"}, f"warning: {PAIR} run different versions: 1 and 2"),
        (
            {"user": "admin"},
            "error: west: its agents would log in elsewhere as 'admin', whom nobody knows",
        ),
        (
            {"peers_by_chart": True},
            "error: west: its connected clusters are written by helm, which would undo it",
        ),
        (
            {"endpoints": (), "no_endpoint": "no address yet"},
            "error: west: others cannot reach its etcd: no address yet",
        ),
        (
            {"server_names": ("etcd.example.org",)},
            "error: west: the certificate of its etcd is for etcd.example.org",
        ),
        (
            {"nodes": (node("n1", "192.0.2.2"),)},
            "warning: west: node n1 has no pod CIDR: others cannot reach its pods",
        ),
        (
            {"nodes": (node("n1", "192.0.2.1"),)},
            "error: 192.0.2.1 of node west/n1 is 192.0.2.1 of node east/n1",
        ),
        (
            {"nodes": (node("n1", "192.0.2.2", "10.1.0.0/16"),)},
            "error: pod CIDR 10.1.0.0/24 of east/n1 is in pod CIDR 10.1.0.0/16 of west/n1",
        ),
        (
            {"nodes": (node("n1", "10.1.0.7", "10.2.0.0/24"),)},
            "error: 10.1.0.7 of node west/n1 is in pod CIDR 10.1.0.0/24 of east/n1",
        ),
        (
            {"nodes": (node("n1", "192.0.2.2", "10.91.7.0/24"),)},
            "error: pod CIDR 10.91.7.0/24 of west/n1 is in service CIDR 10.91.0.0/16 of east",
        ),
        (
            {"service_cidrs": (ip_network("10.91.0.0/16"),)},
            "warning: service CIDR 10.91.0.0/16 of west is service CIDR 10.91.0.0/16 of east",
        ),
        (
            {"authority": authority("west"), "bundle_by_chart": True},
            "error: west does not trust the CA of east, and its bundle is written by helm",
        ),
    ],
)
def test_what_stands_in_the_way_is_found(west: dict[str, Any], line: str) -> None:
    assert line in found(EAST, cluster("west", **west))


def test_two_clusters_of_one_name_are_told_apart_by_their_contexts() -> None:
    other = cluster("west", name=ClusterName("east"), user="remote-east")
    assert "error: east (k-east) and east (k-west) have one name" in found(EAST, other)


def test_many_overlaps_are_counted() -> None:
    nodes = tuple(node(f"n{i}", f"192.0.2.{i}", f"10.{i}.0.0/24") for i in range(9))
    lines = found(cluster("east", nodes=nodes), cluster("west", nodes=nodes))
    assert lines[3:] == ["error: 15 more addresses of east and west overlap"]


def test_overlaps_of_ipv6_are_found_and_families_are_not_mixed() -> None:
    east = cluster("east", nodes=(node("n1", "::a00:1", "fd00:1::/64"),), service_cidrs=())
    assert found(east, WEST) == []
    west = cluster("west", nodes=(node("n1", "fd00:1::9", "fd00:2::/64"),), service_cidrs=())
    assert found(east, west) == [
        "error: fd00:1::9 of node west/n1 is in pod CIDR fd00:1::/64 of east/n1"
    ]


# Who shall read whom


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("unicast", ["a-b", "a-c"]),
        ("bidirectional", ["a-b", "a-c", "b-a", "c-a"]),
        ("mesh", ["a-b", "a-c", "b-a", "b-c", "c-a", "c-b"]),
    ],
)
def test_modes(mode: Any, expected: list[str]) -> None:
    assert sorted("-".join(link) for link in links("a", ["b", "c"], mode)) == expected


# What has to change


def planned(*clusters: ClusterRow, mode: Any = "bidirectional") -> list[str]:
    others = [one.context for one in clusters[1:]]
    wanted = links(clusters[0].context, others, mode)
    return [f"{change.context}: {change}" for change in connecting(clusters, wanted)]


def connected(one: ClusterRow, *peers: ClusterRow) -> dict[str, Any]:
    return {"peers": {peer.name: peer_file(peer) for peer in peers}}


def test_clusters_of_one_ca_only_get_each_others_files() -> None:
    assert planned(EAST, WEST) == [
        "k-east: connect to west at https://192.0.2.2:32379",
        "k-west: connect to east at https://192.0.2.1:32379",
    ]


def test_nothing_changes_for_clusters_that_are_connected() -> None:
    east, west = cluster("east", **connected(EAST, WEST)), cluster("west", **connected(WEST, EAST))
    assert planned(east, west) == []


def test_what_is_missing_is_made_up_for() -> None:
    west = cluster("west", **connected(WEST, EAST))
    assert planned(EAST, west) == ["k-east: connect to west at https://192.0.2.2:32379"]


def test_a_cluster_that_is_elsewhere_now_is_connected_anew() -> None:
    east = cluster("east", **connected(EAST, WEST))
    west = cluster("west", endpoints=("192.0.2.9:2379",), **connected(WEST, EAST))
    assert planned(east, west) == ["k-east: reconnect to west at https://192.0.2.9:2379"]


def test_cas_are_trusted_everywhere_before_anything_is_connected() -> None:
    east, west = (cluster(name, authority=authority(name)) for name in ("east", "west"))
    assert planned(east, west) == [
        "k-east: trust 'CA west'",
        "k-west: trust 'CA east'",
        "k-east: connect to west at https://192.0.2.2:32379",
        "k-west: connect to east at https://192.0.2.1:32379",
    ]


def test_in_a_star_only_the_centre_trusts_all() -> None:
    clusters = [cluster(name, authority=authority(name)) for name in NUMBERS]
    assert planned(*clusters)[:3] == [
        "k-east: trust 'CA north', 'CA west'",
        "k-west: trust 'CA east'",
        "k-north: trust 'CA east'",
    ]


def test_a_bundle_that_etcd_has_not_read_is_made_use_of() -> None:
    both = (authority("east"), authority("west"))
    east = cluster("east", authority=both[0], trusted=both, bundle_in_use=True)
    west = cluster("west", authority=both[1], trusted=both, bundle_in_use=False)
    assert [line for line in planned(east, west) if "CA" in line] == [
        "k-west: use the bundle of CAs, which etcd has not read yet"
    ]


def test_one_side_alone_is_left_alone() -> None:
    east, west = (cluster(name, authority=authority(name)) for name in ("east", "west"))
    assert planned(east, west, mode="unicast") == [
        "k-east: trust 'CA west'",
        "k-east: connect to west at https://192.0.2.2:32379",
    ]
    (left,) = left_to_do([east, west], [Link("k-east", "k-west")])
    assert left.startswith("west does not read east yet")
    assert left.endswith("--context k-west --destination-context k-east --connection-mode unicast")


def test_disconnecting_takes_away_what_is_there() -> None:
    east = cluster("east", **connected(EAST, WEST, NORTH))
    changes = [f"{c.context}: {c}" for c in disconnecting([east, WEST], BOTH)]
    assert changes == ["k-east: disconnect from west"]


# The file of a peer


@pytest.mark.parametrize(
    ("endpoint", "names", "name"),
    [
        ("192.0.2.2:2379", ["*.mesh.cilium.io"], "west.mesh.cilium.io"),
        ("192.0.2.2:2379", ["west.mesh.cilium.io"], "west.mesh.cilium.io"),
        ("192.0.2.2:2379", ["192.0.2.2", "*.mesh.cilium.io"], ""),
        ("[fd00::2]:2379", ["fd00::2"], ""),
        ("lb.example.org:2379", ["*.example.org"], ""),
        ("192.0.2.2:2379", ["etcd"], None),
    ],
)
def test_the_name_to_expect(endpoint: str, names: list[str], name: str | None) -> None:
    west = cluster("west", endpoints=(endpoint,), server_names=tuple(names))
    assert server_name(west) == name


def test_a_change_of_a_file_is_told_with_its_endpoints() -> None:
    change = Connect("k-east", WEST.name, peer_file(WEST))
    assert str(change) == "connect to west at https://192.0.2.2:32379"


# Where an etcd is reached


def service(kind: str, *ingress: dict[str, str], node_port: int = 0) -> Service:
    spec = {"type": kind, "clusterIPs": ["10.96.0.9"], "ports": [{"nodePort": node_port}]}
    status = {"loadBalancer": {"ingress": list(ingress)}}
    return msgspec.convert({"spec": spec, "status": status}, Service)


@pytest.mark.parametrize(
    ("exposed", "expected"),
    [
        (service("LoadBalancer", {"ip": "192.0.2.9"}, node_port=30000), "192.0.2.9:2379"),
        (service("LoadBalancer", {"ip": "fd00::9"}), "[fd00::9]:2379"),
        (service("LoadBalancer", {"hostname": "lb.example.org"}), "lb.example.org:2379"),
        (service("LoadBalancer"), "its Service of type LoadBalancer has no address yet"),
        (service("NodePort", node_port=32379), "192.0.2.2:32379 192.0.2.1:32379"),
        (
            service("ClusterIP"),
            "its Service is of type ClusterIP, which others see only if told so",
        ),
    ],
)
def test_an_etcd_is_reached_where_its_service_says_at_ready_nodes_first(
    exposed: Service, expected: str
) -> None:
    nodes = [node("n1", "192.0.2.1")._replace(ready=False), node("n2", "192.0.2.2")]
    endpoints, why_not = endpoints_of(exposed, nodes)
    assert (" ".join(endpoints) or why_not) == expected


def test_endpoints_are_parsed() -> None:
    assert parse_endpoints(("a=h", "a=h:1", "b=[fd00::1]:2", "c=192.0.2.1")) == {
        "a": ["h:2379", "h:1"],
        "b": ["[fd00::1]:2"],
        "c": ["192.0.2.1:2379"],
    }
    with pytest.raises(UserError, match="'west' is no endpoint"):
        parse_endpoints(("west",))

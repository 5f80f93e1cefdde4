from __future__ import annotations

from apiserver.manifests import parse
from apiserver.objects import MeshNode, Node
from apiserver.rules.nodes import nodes
from clustermesh import model
from clustermesh.model import ClusterId, ClusterName, ObjectName

NODE = """
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {zone: b}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status:
  addresses:
  - {type: Hostname, address: node1}
  - {type: InternalIP, address: 192.0.2.1}
  - {type: InternalIP, address: "2001:db8::1"}
  - {type: ExternalIP, address: 203.0.113.1}
  - {type: ExternalDNS, address: node1.example.org}
  nodeInfo: {bootID: from-the-kubelet}
"""
MESH_NODE = """
apiVersion: clustermesh.io/v1alpha1
kind: MeshNode
metadata: {name: node1}
spec: {wireguardPublicKey: a2V5, bootID: from-the-agent, healthIPs: [10.1.0.1, "fd00:1::1"]}
"""


def exported(*texts: str) -> model.Node | None:
    """What is made of a Node and its MeshNode."""
    objects = [item for text in texts for item in parse(text.encode(), "test").objects]
    assert len(objects) == len(texts)
    found = nodes(
        ObjectName("", "node1"),
        {f"file{n}": item for n, item in enumerate(objects) if isinstance(item, Node)},
        {f"file{n}": item for n, item in enumerate(objects) if isinstance(item, MeshNode)},
        cluster=ClusterName("east"),
        cluster_id=ClusterId(1),
    )
    return found.get("node1")


def test_a_node_is_exported_with_its_addresses_and_pod_cidrs() -> None:
    row = exported(NODE)
    assert row is not None
    assert (row.cluster, row.cluster_id, row.name) == ("east", 1, "node1")
    assert [f"{kind} {ip}" for kind, ip in row.addresses] == [
        "InternalIP 192.0.2.1",
        "InternalIP 2001:db8::1",
        "ExternalIP 203.0.113.1",
    ]
    assert [str(cidr) for cidr in row.pod_cidrs] == ["10.1.0.0/24", "fd00:1::/64"]
    assert (row.labels, row.wireguard_public_key) == ({"zone": "b"}, "")
    assert row.boot_id == "from-the-kubelet"


def test_an_old_node_has_a_single_cidr() -> None:
    row = exported(NODE.replace('podCIDRs: [10.1.0.0/24, "fd00:1::/64"]', "podCIDRs: []"))
    assert row is not None
    assert [str(cidr) for cidr in row.pod_cidrs] == ["10.1.0.0/24"]


def test_a_node_without_cidrs_is_exported_all_the_same() -> None:
    row = exported("apiVersion: v1\nkind: Node\nmetadata: {name: node1}")
    assert row is not None
    assert (row.pod_cidrs, row.addresses) == ((), ())


def test_what_the_agent_knows_goes_along() -> None:
    row = exported(MESH_NODE, NODE)
    assert row is not None
    assert (row.wireguard_public_key, row.boot_id) == ("a2V5", "from-the-agent")
    assert [str(ip) for ip in row.health_ips] == ["10.1.0.1", "fd00:1::1"]


def test_a_node_may_say_where_it_is_reached_from_outside() -> None:
    annotated = "annotations: {clustermesh.io/external-address: 203.0.113.9, other: x}, labels"
    row = exported(NODE.replace("labels", annotated))
    assert row is not None
    assert str(row.external_address) == "203.0.113.9"


def test_a_mesh_node_alone_is_no_node() -> None:
    assert exported(MESH_NODE) is None

"""What a Node and its MeshNode become for the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from apiserver.objects import MeshNode, Node
from clustermesh import model
from clustermesh.model import ClusterId, ClusterName, ObjectName


def nodes(
    key: ObjectName,
    objects: Mapping[str, Node],
    mesh_nodes: Mapping[str, MeshNode],
    *,
    cluster: ClusterName,
    cluster_id: ClusterId,
) -> Mapping[str, model.Node]:
    """The node `key`; nothing for a MeshNode whose Node is gone."""
    node = next(iter(objects.values()), None)
    if node is None:
        return {}
    more = next(iter(mesh_nodes.values()), MeshNode(node.metadata)).spec
    external = node.metadata.annotations.external_address
    cidrs = [ip_network(text) for text in node.spec.pod_cidrs or (node.spec.pod_cidr,) if text]
    return {
        key.name: model.Node(
            cluster=cluster,
            cluster_id=cluster_id,
            name=key.name,
            addresses=tuple(
                (a.type, ip_address(a.address))
                for a in node.status.addresses
                if a.type in {"InternalIP", "ExternalIP"}
            ),
            pod_cidrs=tuple(cidrs),
            labels=node.metadata.labels,
            wireguard_public_key=more.wireguard_public_key,
            boot_id=more.boot_id or node.status.node_info.boot_id,
            health_ips=tuple(map(ip_address, more.health_ips)),
            external_address=ip_address(external) if external else None,
        )
    }

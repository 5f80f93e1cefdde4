"""What this node routes to the nodes of other clusters, and to which address of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.rows import Cidr, NodeName, Route, RouteKey, Routing, Routings, TakenLane
from clustermesh.model import ClusterName, IPAddress, IPNetwork, Node

from .cidrs import CidrKey


def routes(
    key: CidrKey, rows: Mapping[str, Cidr], *, own: ClusterName, routings: Routings
) -> Mapping[RouteKey, Route]:
    """
    The route to the addresses `key`; none to our own cluster's, which its CNI reaches.

    A node's own address is routed for pods, into a tunnel only: elsewhere the network that carries
    pods' packets carries those to nodes as well, just as it would without us.
    """
    claim = next(iter(rows.values()))
    if not _is_routed(claim, own):
        return {}
    routing = routings.to(claim.cluster)
    to = RouteKey(key.cidr, claim.is_node)
    match routing:
        case Routing.TUNNEL:
            node_ip = tunnel_endpoint(claim)
        case Routing.DIRECT if not claim.is_node:
            node_ip = next_hop(claim, key.cidr.version)
        case Routing.NATIVE if not claim.is_node:
            return {to: Route(claim.cluster, claim.node, None, routing)}
        case _:
            return {}
    if node_ip is None:
        return {}
    return {to: Route(claim.cluster, claim.node, node_ip, routing)}


def encrypted_routes(
    key: CidrKey,
    rows: Mapping[str, Cidr],
    *,
    own: ClusterName,
    routings: Routings,
    lane: Callable[[NodeName], TakenLane | None],
) -> Mapping[RouteKey, Route]:
    """The same with encryption: straight over the WireGuard device that leads to the node."""
    claim = next(iter(rows.values()))
    if not _is_routed(claim, own):
        return {}
    taken = lane(NodeName(claim.cluster, claim.node))
    if taken is None:
        return {}
    routing = routings.to(claim.cluster)
    return {
        RouteKey(key.cidr, claim.is_node): Route(
            claim.cluster, claim.node, taken.endpoint, routing, taken.device
        )
    }


def pod_sources(node: Node | None) -> tuple[IPNetwork, ...]:
    """
    The pod CIDRs of this node, for whose packets the routes to nodes' own addresses are.

    Without one that the node itself is in: its tunnel would be led into the tunnel.
    """
    if node is None:
        return ()
    return tuple(cidr for cidr in node.pod_cidrs if not any(ip in cidr for _, ip in node.addresses))


def _is_routed(claim: Cidr, own: ClusterName) -> bool:
    return not (claim.cluster == own or claim.refused or claim.closed or claim.unrouted)


def tunnel_endpoint(claim: Cidr) -> IPAddress | None:
    """The node's address that packets are wrapped to: IPv4 if it has one, for the larger MTU."""
    return min(claim.node_ips, key=lambda ip: ip.version, default=None)


def next_hop(claim: Cidr, version: int) -> IPAddress | None:
    """The node's address that packets of an IP version are handed to: one of the same version."""
    return next((ip for ip in claim.node_ips if ip.version == version), None)

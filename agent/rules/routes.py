"""Which pod CIDRs this node routes to the nodes of other clusters, and to which address of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.rows import Cidr, NodeName, Route, Routing, Routings, TakenLane
from clustermesh.model import ClusterName, IPAddress, IPNetwork

from .cidrs import CidrKey


def routes(
    key: CidrKey, rows: Mapping[str, Cidr], *, own: ClusterName, routings: Routings
) -> Mapping[IPNetwork, Route]:
    """The route to the pod CIDR `key`; none to our own cluster's, which its CNI reaches."""
    claim = next(iter(rows.values()))
    if claim.refused or claim.closed or claim.is_node or claim.cluster == own:
        return {}
    routing = routings.to(claim.cluster)
    match routing:
        case Routing.TUNNEL:
            node_ip = tunnel_endpoint(claim)
        case Routing.DIRECT:
            node_ip = next_hop(claim, key.cidr.version)
        case Routing.NATIVE:
            return {key.cidr: Route(claim.cluster, claim.node, None, routing)}
    if node_ip is None:
        return {}
    return {key.cidr: Route(claim.cluster, claim.node, node_ip, routing)}


def encrypted_routes(
    key: CidrKey,
    rows: Mapping[str, Cidr],
    *,
    own: ClusterName,
    routings: Routings,
    lane: Callable[[NodeName], TakenLane | None],
) -> Mapping[IPNetwork, Route]:
    """The same with encryption: straight over the WireGuard device that leads to the node."""
    claim = next(iter(rows.values()))
    if claim.refused or claim.closed or claim.is_node or claim.cluster == own:
        return {}
    taken = lane(NodeName(claim.cluster, claim.node))
    if taken is None:
        return {}
    return {
        key.cidr: Route(
            claim.cluster, claim.node, taken.endpoint, routings.to(claim.cluster), taken.device
        )
    }


def tunnel_endpoint(claim: Cidr) -> IPAddress | None:
    """The node's address that packets are wrapped to: IPv4 if it has one, for the larger MTU."""
    return min(claim.node_ips, key=lambda ip: ip.version, default=None)


def next_hop(claim: Cidr, version: int) -> IPAddress | None:
    """The node's address that packets of an IP version are handed to: one of the same version."""
    return next((ip for ip in claim.node_ips if ip.version == version), None)

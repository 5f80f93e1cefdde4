"""Who has an address, for policy, for the identity in a tunnel, and to see through forgers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_network

from agent.rows import Cidr, IpcacheEntry
from clustermesh.model import REMOTE_NODE, WORLD, ClusterName, Endpoint, IPAddress, IPNetwork

from .cidrs import CidrKey
from .routes import tunnel_endpoint


def cidr_entries(
    key: CidrKey, rows: Mapping[str, Cidr], *, own: ClusterName
) -> Mapping[IPNetwork, IpcacheEntry]:
    """
    The entry of another cluster's CIDR, for the addresses in it that no endpoint is known for.

    Our own cluster's have none: a pod that nobody has told us of has no identity yet.
    """
    claim = next(iter(rows.values()))
    if claim.refused or claim.cluster == own:
        return {}
    identity = REMOTE_NODE if claim.is_node else WORLD
    return {key.cidr: IpcacheEntry(identity, claim.cluster_id, tunnel_endpoint(claim))}


def endpoint_entries(
    key: IPAddress,
    rows: Mapping[str, Endpoint],
    *,
    own: ClusterName,
    owner: Callable[[IPAddress], Cidr | None],
) -> Mapping[IPNetwork, IpcacheEntry]:
    """
    The entry of a pod's address, if the cluster that says so owns the address.

    A pod outside of all known CIDRs has none: there is no route to it either. One is reached
    through the node whose CIDR it is in, whatever its own row says: the same node that its packets
    must come from.
    """
    claim = owner(key)
    endpoint = rows.get(claim.cluster) if claim else None
    if claim is None or endpoint is None:
        return {}
    node_ip = None if claim.cluster == own else tunnel_endpoint(claim)
    return {ip_network(key): IpcacheEntry(endpoint.identity, claim.cluster_id, node_ip)}

"""The agent's tables as a person reads them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clustermesh.model import (
    ClusterName,
    Endpoint,
    Identity,
    IdentityId,
    IPAddress,
    IPNetwork,
    L4Address,
    Node,
    ObjectName,
    PortsByAddress,
    Service,
)

from .kernel.wireguard.driver import PeerState
from .rows import Cidr, Device, Frontend, IpcacheEntry, Peer, PeerKey, Pod, Route, RouteKey
from .rules.cidrs import CidrKey

Rendered = Iterable[Mapping[str, Any]]


def service(
    key: ObjectName,
    rows: Mapping[str, Service],
    *,
    own: ClusterName,
    conflicts: Callable[[ObjectName], Iterable[str]],
) -> Rendered:
    """
    A service as each cluster sees it.

    Args:
        conflicts: which frontends of a service of our own cluster are another one's.
    """
    for cluster, row in rows.items():
        lost = "; ".join(conflicts(key)) if cluster == own else ""
        yield {
            "service": str(key),
            "cluster": cluster,
            "shared": row.shared,
            "affinity": row.affinity,
            "frontends": _addresses(row.frontends),
            "backends": _addresses(row.backends),
            **({"conflict": lost} if lost else {}),
        }


def frontend(key: L4Address, rows: Mapping[str, Frontend]) -> Rendered:
    """A frontend of our cluster, with the backends of all."""
    for row in rows.values():
        yield {
            "service": str(row.service),
            "address": str(key),
            "affinity": row.affinity,
            "backends": [
                {"address": str(b.address), "cluster": b.cluster, "state": b.state}
                for b in row.backends
            ],
        }


def node(key: str, rows: Mapping[str, Node]) -> Rendered:
    """A node of each cluster that has one of that name."""
    for cluster, row in rows.items():
        yield {
            "node": key,
            "cluster": cluster,
            "addresses": [f"{kind} {ip}" for kind, ip in row.addresses],
            "pod_cidrs": [str(cidr) for cidr in row.pod_cidrs],
            **({"public_key": row.wireguard_public_key} if row.wireguard_public_key else {}),
        }


def identity(key: IdentityId, rows: Mapping[str, Identity]) -> Rendered:
    """A number and its labels."""
    for cluster, row in rows.items():
        labels = [f"{source}:{name}={value}" for source, name, value in row.labels]
        yield {"identity": key, "cluster": cluster, "labels": labels, **_conflict(cluster, rows)}


def endpoint(key: IPAddress, rows: Mapping[str, Endpoint]) -> Rendered:
    """The address of a pod."""
    for cluster, row in rows.items():
        yield {
            "address": str(key),
            "cluster": cluster,
            "pod": str(row.pod),
            "identity": row.identity,
            "node_ip": str(row.node_ip) if row.node_ip else None,
            **_conflict(cluster, rows),
        }


def cidr(key: CidrKey, rows: Mapping[str, Cidr]) -> Rendered:
    """A claim on addresses, and why it is refused when it is."""
    for row in rows.values():
        yield {
            "cidr": str(key.cidr),
            "cluster": key.cluster,
            "node": key.node,
            "kind": "node" if row.is_node else "pods",
            "refused": row.refused or row.closed,
            **({"note": f"not routed: {row.unrouted}"} if row.unrouted else {}),
        }


def peer(
    key: PeerKey,
    rows: Mapping[str, Peer],
    *,
    seen: Callable[[PeerKey], PeerState | None],
    now: Callable[[], float],
) -> Rendered:
    """A node at the other end of a WireGuard device, and what was seen of it last."""
    for row in rows.values():
        state = seen(key)
        endpoint = (state.config.endpoint if state else None) or row.endpoint
        age = round(now() - state.handshake_at, 1) if state and state.handshake_at else None
        yield {
            "cluster": row.cluster,
            "node": row.node,
            "device": key.device,
            "public_key": key.public_key,
            "endpoint": str(endpoint),
            "handshake_age": age,
            "received": state.received if state else 0,
            "sent": state.sent if state else 0,
            "allowed_ips": [str(network) for network in row.allowed_ips],
        }


def route(key: RouteKey, rows: Mapping[str, Route]) -> Rendered:
    """A route to another cluster's pods, or to a node of it."""
    for row in rows.values():
        yield {
            "prefix": str(key),
            "for": "pods" if key.from_pods else "all",
            "cluster": row.cluster,
            "node": row.node,
            "routing": row.routing,
            "node_ip": str(row.node_ip) if row.node_ip else None,
            **({"device": row.device} if row.device else {}),
        }


def ipcache(key: IPNetwork, rows: Mapping[str, IpcacheEntry]) -> Rendered:
    """Who has an address."""
    for row in rows.values():
        yield {
            "prefix": str(key),
            "identity": row.identity,
            "cluster_id": row.cluster_id,
            "node_ip": str(row.node_ip) if row.node_ip else None,
        }


def pod(key: IPAddress, rows: Mapping[str, Pod]) -> Rendered:
    """A pod of this node that is on the fast path."""
    for row in rows.values():
        yield {
            "address": str(key),
            "device": _device(row.port),
            "bridge": _device(row.device) if row.device != row.port else None,
            "mac": row.mac,
        }


def device(key: int, rows: Mapping[str, Device]) -> Rendered:
    """A device of this node, and what the guard lets pass there."""
    for row in rows.values():
        yield {"index": key, "device": row.name, "uplink": row.is_uplink}


def _device(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it has just gone
        return f"#{index}"


def _addresses(ports_by_address: PortsByAddress) -> Sequence[str]:
    return [
        str(L4Address(ip, port.port, port.protocol))
        for ip, ports in ports_by_address.items()
        for port in dict.fromkeys(ports.values())
    ]


def _conflict(cluster: str, rows: Mapping[str, object]) -> Mapping[str, str]:
    others = [other for other in rows if other != cluster]
    return {"conflict": f"{', '.join(others)} has it too"} if others else {}

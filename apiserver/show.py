"""The apiserver's tables as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clustermesh.model import Endpoint, Identity, IdentityId, IPAddress, Node, ObjectName, Service


def service(key: ObjectName, rows: Mapping[str, Service]) -> Iterable[Mapping[str, Any]]:
    """An exported service."""
    for row in rows.values():
        yield {
            "service": str(key),
            "shared": row.shared,
            "affinity": row.affinity,
            "frontends": [str(ip) for ip in row.frontends],
            "backends": sorted(str(ip) for ip in row.backends),
        }


def node(key: str, rows: Mapping[str, Node]) -> Iterable[Mapping[str, Any]]:
    """An exported node."""
    for row in rows.values():
        yield {
            "node": key,
            "cluster": row.cluster,
            "addresses": [f"{kind} {ip}" for kind, ip in row.addresses],
            "pod_cidrs": [str(cidr) for cidr in row.pod_cidrs],
        }


def identity(key: IdentityId, rows: Mapping[str, Identity]) -> Iterable[Mapping[str, Any]]:
    """A number and its labels."""
    for row in rows.values():
        yield {"identity": key, "labels": [f"{s}:{k}={v}" for s, k, v in row.labels]}


def endpoint(key: IPAddress, rows: Mapping[str, Endpoint]) -> Iterable[Mapping[str, Any]]:
    """The address of a pod."""
    for row in rows.values():
        yield {
            "address": str(key),
            "pod": str(row.pod),
            "identity": row.identity,
            "node_ip": str(row.node_ip) if row.node_ip else None,
        }

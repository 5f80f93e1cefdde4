"""What a kind of row in etcd is, and for whom it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from clustermesh.model import (
    ClusterId,
    ClusterName,
    identity_range,
)

K = TypeVar("K")
V = TypeVar("V")

HEARTBEAT: Final = "cilium/.heartbeat"
HEARTBEAT_EVERY: Final = 60.0  # seconds
HEARTBEAT_LOST: Final = 120.0  # seconds without one after which a connection has failed
CLUSTER_CONFIGS: Final = "cilium/cluster-config/"
SYNCED: Final = "cilium/synced/"
LOCAL: Final = "clustermesh/local/"
HEARTBEATS: Final = f"{LOCAL}heartbeat/"  # of the clusters that are copied
RESERVED_IDENTITIES: Final = range(1, 256)

CLUSTER_LABEL: Final = "io.cilium.k8s.policy.cluster"
NAMESPACE_LABEL: Final = "io.kubernetes.pod.namespace"
SERVICE_ACCOUNT_LABEL: Final = "io.cilium.k8s.policy.serviceaccount"
NAMESPACE_LABELS_PREFIX: Final = "io.cilium.k8s.namespace.labels."


class Owner(msgspec.Struct, frozen=True):
    """The cluster that rows are read from, and what it may speak for."""

    cluster: ClusterName
    id: ClusterId
    max_connected_clusters: int

    @property
    def identities(self) -> range:
        """The numeric identities that this cluster may hand out."""
        return identity_range(self.id, self.max_connected_clusters)


@dataclass(frozen=True)
class Kind(Generic[K, V]):
    """
    One kind of row in etcd.

    `key` and `parse_key` turn the row's key into the part of the etcd key after the prefix and
    back; `encode` and `decode` do the same for the value. `decode` and `parse_key` raise
    BadRowError.
    """

    name: str
    state: str  # the prefix in the etcd of the cluster itself, with {cluster} where it has one
    cache: str  # the prefix of a copy in another cluster's etcd (kvstoremesh)
    key: Callable[[K], str]
    parse_key: Callable[[str], K]
    encode: Callable[[V], bytes]
    decode: Callable[[Owner, K, bytes], V]

    def prefix(self, cluster: ClusterName, *, cached: bool = False) -> str:
        """Where the rows of `cluster` are, with a trailing slash: `cluster1` is not `cluster10`."""
        return (self.cache if cached else self.state).format(cluster=cluster)

    def canary(self, cluster: ClusterName, *, cached: bool = False) -> str:
        """The key that says that the first listing of `cluster` is in."""
        prefix = self.prefix(cluster, cached=cached)
        return f"{SYNCED}{cluster}/{prefix[: prefix.index('/v1/') + 3]}"


def verbatim(kind: Kind[Any, Any]) -> Kind[str, bytes]:
    """The same rows as they are in etcd: for whoever copies them, and need not understand them."""
    return Kind(
        name=kind.name,
        state=kind.state,
        cache=kind.cache,
        key=str,
        parse_key=str,
        encode=bytes,
        decode=lambda _owner, _key, value: value,
    )


def heartbeat_key(cluster: ClusterName, *, cached: bool = False) -> str:
    """
    What is rewritten every minute while a cluster is alive.

    Of a copy its holder passes the heartbeats on: those of the holder itself say nothing of it.
    """
    return f"{HEARTBEATS}{cluster}" if cached else HEARTBEAT


def cluster_config_key(cluster: ClusterName) -> str:
    """Where a cluster introduces itself."""
    return f"{CLUSTER_CONFIGS}{cluster}"

"""What one has to know of clusters to join them: frozen rows, read by `installation.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from clustermesh.model import NOTHING, ClusterName, IPAddress, IPNetwork


class Authority(NamedTuple):
    """A CA. Two are the same if their fingerprints are."""

    name: str
    fingerprint: str  # SHA-256, hexadecimal
    pem: str


class NodeRow(NamedTuple):
    """A node of a cluster."""

    name: str
    addresses: tuple[IPAddress, ...]  # internal ones
    pod_cidrs: tuple[IPNetwork, ...]
    ready: bool = True


class ClusterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster that has clustermesh installed."""

    context: str
    namespace: str
    name: ClusterName
    id: int
    max_connected_clusters: int = 255
    routing: str = "tunnel"
    cluster_routing: Mapping[str, str] = NOTHING  # where it is another one, by cluster
    encryption: str = "none"
    tunnel: str = ""  # protocol and port, as a person says them
    version: str = ""
    release: str = "clustermesh"  # of helm
    user: str = ""  # as whom its agents log in elsewhere: remote-NAME, or remote
    nodes: tuple[NodeRow, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()  # empty: the API server is too old to tell
    endpoints: tuple[str, ...] = ()  # HOST:PORT at which others reach its etcd
    no_endpoint: str = ""  # why there is none
    server_names: tuple[str, ...] = ()  # in etcd's certificate
    authority: Authority  # that signs its certificates
    trusted: tuple[Authority, ...]
    bundle_in_use: bool = False  # it trusts the CAs of a ConfigMap, and etcd has read these
    bundle_by_chart: bool = False  # that ConfigMap is written by helm
    peers: Mapping[ClusterName, str] = NOTHING  # the file of each connected cluster
    peers_by_chart: bool = False  # they are written by helm

    def routing_to(self, cluster: ClusterName) -> str:
        """How its nodes send to those of `cluster`."""
        return self.cluster_routing.get(cluster, self.routing)

    def reached_at(self, endpoints: Sequence[str]) -> ClusterRow:
        """The same, if others reach it there; without endpoints itself."""
        return replace(self, endpoints=tuple(endpoints)) if endpoints else self


SERVER_DOMAIN: Final = "mesh.cilium.io"
"""STABLE API: every server certificate of a mesh is also for `*.mesh.cilium.io`."""

"""
The words of the mesh: what the apiserver exports and the agent reads, as frozen rows.

Nothing here knows how a row is written in etcd: that is `kinds/`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NewType, TypeAlias

import msgspec

from .errors import UserError

ClusterName = NewType("ClusterName", str)
ClusterId = NewType("ClusterId", int)
IdentityId = NewType("IdentityId", int)
IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
"""The empty mapping of all rows. With a dict of its own in each empty field a row would be half as
large again."""

# STABLE API: the reserved identities of Cilium.
HOST: Final = IdentityId(1)
WORLD: Final = IdentityId(2)
REMOTE_NODE: Final = IdentityId(6)

# STABLE API: what a cluster may be called.
CLUSTER_NAME: Final = re.compile(r"([a-z0-9][-a-z0-9]*)?[a-z0-9]")
CLUSTER_NAME_MAX: Final = 32


class Protocol(enum.StrEnum):
    """The transport of a port, as Kubernetes writes it."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Affinity(enum.StrEnum):
    """Which backends a global service prefers."""

    NONE = "none"
    LOCAL = "local"
    REMOTE = "remote"


class ObjectName(NamedTuple):
    """The name of something in a namespace; printed `namespace/name`."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Port(NamedTuple):
    """A port, without its name."""

    protocol: Protocol
    port: int


class L4Address(NamedTuple):
    """Where a frontend or a backend listens; printed `10.0.0.1:80/TCP`, `[fd00::1]:80/TCP`."""

    ip: IPAddress
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        return f"{host}:{self.port}/{self.protocol}"


PortsByAddress: TypeAlias = Mapping[IPAddress, Mapping[str, Port]]
"""Ports by name (`""` for an unnamed one) of each address."""


class Service(msgspec.Struct, frozen=True, gc=False):
    """A global service as one cluster sees it: its own frontends, its own ready backends."""

    cluster: ClusterName
    cluster_id: ClusterId
    name: ObjectName
    frontends: PortsByAddress
    backends: PortsByAddress
    labels: Mapping[str, str] = NOTHING
    selector: Mapping[str, str] = NOTHING
    hostnames: Mapping[IPAddress, str] = NOTHING
    zones: Mapping[IPAddress, Zone] = NOTHING
    shared: bool = True
    include_external: bool = True
    affinity: Affinity = Affinity.NONE  # never crosses clusters: each decides for itself


class Zone(msgspec.Struct, frozen=True, gc=False):
    """Where a backend is, and the zones that its cluster hints should use it."""

    zone: str
    for_zones: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, gc=False):
    """A node of a cluster: where its pods are and how to reach them."""

    cluster: ClusterName
    cluster_id: ClusterId
    name: str
    addresses: tuple[tuple[str, IPAddress], ...]  # ("InternalIP", 192.0.2.1); the first is used
    pod_cidrs: tuple[IPNetwork, ...]  # primary ones first
    labels: Mapping[str, str] = NOTHING
    wireguard_public_key: str = ""  # base64; empty when encryption is off
    boot_id: str = ""
    health_ips: tuple[IPAddress, ...] = ()  # in its pod CIDRs, one of a version: to be probed
    external_address: IPAddress | None = None  # where it is reached from outside of its network

    def internal_ip(self, version: int) -> IPAddress | None:
        """The node's address that tunnels and direct routes go to, of IP version 4 or 6."""
        return next(
            (ip for kind, ip in self.addresses if kind == "InternalIP" and ip.version == version),
            None,
        )


class Identity(msgspec.Struct, frozen=True, gc=False):
    """A set of labels, shared by all pods that carry it, and its number."""

    id: IdentityId
    labels: tuple[tuple[str, str, str], ...]  # (source, key, value), sorted


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """An address of a pod, and who the pod is."""

    ip: IPAddress
    node_ip: IPAddress | None
    identity: IdentityId
    pod: ObjectName
    uid: str = ""
    service_account: str = ""
    named_ports: tuple[tuple[str, int, Protocol], ...] = ()


class ClusterConfig(msgspec.Struct, frozen=True, gc=False):
    """What a cluster says of itself before anything else is read from it."""

    id: ClusterId
    max_connected_clusters: int = 255
    synced_canaries: bool = True
    service_exports_enabled: bool = False
    cached: bool = False  # a copy that another cluster keeps (kvstoremesh)


def parse_cluster_name(name: str) -> ClusterName:
    """
    `name`, if a cluster may be called so.

    Raises:
        UserError: it says what is wrong and what is allowed.
    """
    if len(name) > CLUSTER_NAME_MAX or not CLUSTER_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no cluster name",
            hint=f"use at most {CLUSTER_NAME_MAX} of a-z, 0-9 and -, not - at an end",
        )
    return ClusterName(name)


def parse_cluster_id(number: int, max_connected_clusters: int) -> ClusterId:
    """
    `number`, if it is in range.

    Raises:
        UserError: it names the range.
    """
    if not 1 <= number <= max_connected_clusters:
        raise UserError(
            f"cluster id {number} is out of range", hint=f"choose 1-{max_connected_clusters}"
        )
    return ClusterId(number)


def identity_range(cluster_id: ClusterId, max_connected_clusters: int) -> range:
    """
    The numeric identities of a cluster, of the 24 bits that a VNI has.

    # STABLE API: with 255 clusters 65536 each, with 511 clusters 32768 each.
    """
    size = 1 << (16 if max_connected_clusters == 255 else 15)
    return range(cluster_id * size, (cluster_id + 1) * size)

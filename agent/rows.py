"""What the agent derives: the rows that its targets put into the kernel, and that `show` prints."""

from __future__ import annotations

import enum

import msgspec

from clustermesh.model import (
    Affinity,
    ClusterId,
    ClusterName,
    IdentityId,
    IPAddress,
    L4Address,
    ObjectName,
)


class BackendState(enum.StrEnum):
    """Whether the load balancer uses a backend."""

    ACTIVE = "active"
    STANDBY = "standby"  # affinity prefers others while they last


class Backend(msgspec.Struct, frozen=True, gc=False):
    """A ready endpoint of a global service, in whichever cluster."""

    address: L4Address
    cluster: ClusterName
    state: BackendState


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """An address of a global service in this cluster, and all that could answer it."""

    service: ObjectName
    affinity: Affinity
    backends: tuple[Backend, ...]  # sorted by address

    def active(self) -> tuple[L4Address, ...]:
        """What the load balancer may choose from. Empty: connections are refused."""
        return tuple(b.address for b in self.backends if b.state is BackendState.ACTIVE)


class Cidr(msgspec.Struct, frozen=True, gc=False):
    """Addresses that a node of some cluster has: its pod CIDR, or one of its own addresses."""

    cluster: ClusterName
    cluster_id: ClusterId
    node: str
    node_ips: tuple[IPAddress, ...]  # InternalIPs, without those that are refused
    is_node: bool = False  # the node itself, not its pods
    refused: str = ""  # why it is not used, when it is not


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """Addresses that no pod of another cluster can have: routing them there would cut us off."""

    what: str
    cluster: ClusterName | None = None  # whose they are, who may have them after all


class Route(msgspec.Struct, frozen=True, gc=False):
    """How this node reaches a pod CIDR of another cluster."""

    cluster: ClusterName
    node: str
    node_ip: IPAddress


class IpcacheEntry(msgspec.Struct, frozen=True, gc=False):
    """Who has an address, and the node to tunnel to for it."""

    identity: IdentityId
    cluster_id: ClusterId
    node_ip: IPAddress | None  # None: in this cluster, which the CNI reaches

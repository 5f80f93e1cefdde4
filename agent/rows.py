"""What the agent derives: the rows that its targets put into the kernel, and that `show` prints."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from clustermesh.model import (
    NOTHING,
    Affinity,
    ClusterId,
    ClusterName,
    IdentityId,
    IPAddress,
    IPNetwork,
    L4Address,
    ObjectName,
)


class BackendState(enum.StrEnum):
    """Whether the load balancer uses a backend."""

    ACTIVE = "active"
    STANDBY = "standby"  # affinity prefers others while they last
    UNENCRYPTED = "unencrypted"  # with encryption: no way to it that encrypts, so it is not used


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
    closed: str = ""  # why nothing may be sent there, though it is theirs: encryption
    external: IPAddress | None = None  # where the node is reached from outside, if it says so
    unrouted: str = ""  # of a node's own address: why what pods send to it is not led there


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """Addresses that no pod of another cluster can have: routing them there would cut us off."""

    what: str
    cluster: ClusterName | None = None  # whose they are, who may have them after all


class Routing(enum.StrEnum):
    """How packets get to the pods of another cluster."""

    TUNNEL = "tunnel"  # wrapped, from node to node
    DIRECT = "direct"  # handed to the pod's node, which is on our segment
    NATIVE = "native"  # left to the network, which knows where the pods are


class Routings(msgspec.Struct, frozen=True):
    """The routing of each other cluster."""

    default: Routing = Routing.TUNNEL
    by_cluster: Mapping[ClusterName, Routing] = NOTHING

    def to(self, cluster: ClusterName) -> Routing:
        """How packets get to `cluster`."""
        return self.by_cluster.get(cluster, self.default)

    @property
    def in_use(self) -> frozenset[Routing]:
        """Those that there are."""
        return frozenset((self.default, *self.by_cluster.values()))


class RouteKey(NamedTuple):
    """Where a route leads, and for whose packets; printed as the prefix."""

    prefix: IPNetwork
    from_pods: bool = False  # for those of this node's pods only: to another node's own address

    def __str__(self) -> str:
        return str(self.prefix)


class Route(msgspec.Struct, frozen=True, gc=False):
    """How this node reaches a pod CIDR, or a node's own address, of another cluster."""

    cluster: ClusterName
    node: str
    node_ip: IPAddress | None  # None: nobody here has to know
    routing: Routing
    device: str = ""  # the WireGuard device that it goes through; empty without encryption


class Backstop(msgspec.Struct, frozen=True, gc=False):
    """Pods of another cluster, or for our pods one of its nodes: nothing goes there in plain."""

    is_held: bool = False  # nobody claims them any more


class NodeName(NamedTuple):
    """A node of some cluster; printed `cluster/node`."""

    cluster: ClusterName
    node: str

    def __str__(self) -> str:
        return f"{self.cluster}/{self.node}"


class OwnKey(msgspec.Struct, frozen=True, gc=False):
    """A WireGuard key of this node, by its public half."""

    parity: int  # see lanes.py
    age: int  # 0: the current one; 1: the one before


class PeerKey(NamedTuple):
    """A peer of one of our WireGuard devices."""

    device: str
    public_key: str  # base64

    def __str__(self) -> str:
        return f"{self.public_key} on {self.device}"


class UdpAddress(NamedTuple):
    """Where a node receives; printed `192.0.2.1:51871`, `[2001:db8::1]:51871`."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


class Peer(msgspec.Struct, frozen=True, gc=False):
    """A node of another cluster, at the other end of a lane."""

    cluster: ClusterName
    node: str
    endpoint: UdpAddress
    allowed_ips: tuple[IPNetwork, ...]  # sorted: its pods' and its own, and nobody else's
    keepalive: int  # seconds; 0: none
    age: int  # 0 for the newest lane to that node


class Session(msgspec.Struct, frozen=True, gc=False):
    """A peer has answered on a lane."""


class TakenLane(msgspec.Struct, frozen=True, gc=False):
    """The lane that packets to a node take at present."""

    device: str
    endpoint: IPAddress


class IpcacheEntry(msgspec.Struct, frozen=True, gc=False):
    """Who has an address, and the node to tunnel to for it."""

    identity: IdentityId
    cluster_id: ClusterId
    node_ip: IPAddress | None  # None: in this cluster, which the CNI reaches


class Device(msgspec.Struct, frozen=True, gc=False):
    """A device of this node that packets can leave it by."""

    name: str
    is_uplink: bool  # known to lead off the node, with none of its pods behind it


class Pod(msgspec.Struct, frozen=True, gc=False):
    """Where a pod of this node is, by interface indexes: what the fast path delivers to."""

    port: int  # its veth, the node's end
    device: int  # that its address is routed to: the same, or the bridge of that port
    mac: str
    gateway: str  # the MAC address that the pod sends to: that of `device`

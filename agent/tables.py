"""The tables of the agent: what was read of every cluster, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from clustermesh.model import (
    Endpoint,
    Identity,
    IdentityId,
    IPAddress,
    IPNetwork,
    L4Address,
    Node,
    ObjectName,
    Service,
)
from clustermesh.state import Table, Waiting

from .rows import (
    Backstop,
    Cidr,
    Device,
    Frontend,
    IpcacheEntry,
    NodeName,
    OwnKey,
    Peer,
    PeerKey,
    Pod,
    Reserved,
    Route,
    RouteKey,
    Session,
    TakenLane,
)
from .rules.cidrs import CidrKey
from .rules.probes import PathKey, Probe


@dataclass(frozen=True)
class Read:
    """What the clusters say, ours among them. A row's origin is the cluster that says it."""

    nodes: Table[str, Node] = field(default_factory=lambda: Table("nodes"))
    services: Table[ObjectName, Service] = field(default_factory=lambda: Table("services"))
    identities: Table[IdentityId, Identity] = field(default_factory=lambda: Table("identities"))
    endpoints: Table[IPAddress, Endpoint] = field(default_factory=lambda: Table("endpoints"))
    pods: Table[IPAddress, Pod] = field(default_factory=lambda: Table("pods"))
    reserved: Table[IPNetwork, Reserved] = field(default_factory=lambda: Table("reserved"))
    # Only with encryption, by interface index.
    devices: Table[int, Device] = field(default_factory=lambda: Table("devices"))
    # Only with encryption, by public key; the keys of a node the newest first.
    own_keys: Table[str, OwnKey] = field(default_factory=lambda: Table("own keys"))
    keys: Table[NodeName, tuple[str, ...]] = field(default_factory=lambda: Table("keys"))
    sessions: Table[PeerKey, Session] = field(default_factory=lambda: Table("sessions"))


@dataclass(frozen=True)
class Derived:
    """What this node's kernel shall have, and the services whose frontends others had first."""

    cidrs: Table[CidrKey, Cidr] = field(default_factory=lambda: Table("cidrs"))
    frontends: Table[L4Address, Frontend] = field(default_factory=lambda: Table("frontends"))
    routes: Table[RouteKey, Route] = field(default_factory=lambda: Table("routes"))
    peers: Table[PeerKey, Peer] = field(default_factory=lambda: Table("peers"))
    lanes: Table[NodeName, TakenLane] = field(default_factory=lambda: Table("lanes"))
    ipcache: Table[IPNetwork, IpcacheEntry] = field(default_factory=lambda: Table("ipcache"))
    backstops: Table[RouteKey, Backstop] = field(default_factory=lambda: Table("backstops"))
    probes: Table[PathKey, Probe] = field(default_factory=lambda: Table("probes"))
    waiting: Waiting[ObjectName, L4Address] = field(default_factory=Waiting)

"""
What a daemon says of itself: `/status`, `/tables/<name>`, as the daemons write and the CLI reads.

# STABLE API: a CLI of one version reads a daemon of another. So a field is never renamed, a new
# one has a default, and unknown ones are ignored.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec


class RemoteState(enum.StrEnum):
    """How far the reading of another cluster has come."""

    CONNECTING = "connecting"
    LISTING = "listing"  # connected, not everything has been read yet
    READY = "ready"
    REFUSED = "refused"  # it answers, and we do not believe it: a cluster id that is taken
    FAILED = "failed"  # it does not answer; its last known state stays in use


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """Another cluster, as the agent of a node sees it, or an apiserver that copies it."""

    cluster: str
    id: int | None = None  # None until its cluster-config has been read
    state: RemoteState
    since: float = 0.0  # seconds in this state
    last_error: str | None = None
    nodes: int = 0
    services: int = 0
    identities: int = 0
    endpoints: int = 0
    bad_rows: int = 0  # skipped now: it has no right to them, or they make no sense
    last_bad_row: str | None = None


class RowFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A row that is not in its place, and why."""

    key: str | None  # None: the place as a whole does not answer
    error: str
    origin: str = ""  # the cluster that a refused row came from
    attempts: int = 0
    retry_in: float | None = None  # seconds; None: not before the row changes


class TableStatus(msgspec.Struct, frozen=True):
    """How much there is in a table."""

    rows: int
    failures: int  # rows that are not where a reconciler should have put them
    bad_rows: int = 0  # rows of peers that were skipped


class TableReply(msgspec.Struct, frozen=True):
    """`/tables/<name>`. The rows of each table have fields of their own."""

    rows: list[dict[str, Any]]
    failures: list[RowFailure] = []


class Cluster(msgspec.Struct, frozen=True):
    """Which cluster a daemon belongs to."""

    name: str
    id: int


class Datapath(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent has put into the kernel."""

    mode: str = "none"
    routing: str = ""  # how pods of other clusters are reached; not at all by mode none
    attached: bool = False
    drops: Mapping[str, int] = {}  # packets by reason, since the maps were made
    fast_path_off: str = ""  # why no pods are on the fast path, though it was asked for


class Problem(msgspec.Struct, frozen=True):
    """An object of the source that cannot be used."""

    where: str
    error: str


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where the apiserver reads its cluster, and what it found."""

    kind: str
    listed: bool = False
    objects: int = 0
    problems: list[Problem] = []
    leader: str = ""  # the replica that gives identities, as far as known; empty if there is one

    @property
    def leader_host(self) -> str:
        """The host or pod of the leader: its name has a number after it, as in client-go."""
        return self.leader.partition("_")[0]


class EtcdStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The etcd that the apiserver publishes in."""

    endpoints: list[str] = []
    connected: bool = False
    last_error: str | None = None


class ClusterPaths(msgspec.Struct, frozen=True, kw_only=True):
    """How packets get from this node to another cluster's, in numbers of ways."""

    cluster: str
    paths: int = 0  # ways: nodes and IP versions
    well: int = 0
    failing: int = 0
    not_probed: int = 0
    loss: float = 0.0  # of probes, 0 to 1
    round_trip: float | None = None  # seconds, the median of the ways
    worst: str = ""  # why a way fails


class PathsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's probes say of the data path."""

    clusters: list[ClusterPaths] = []
    failing: list[str] = []  # which way, and why; without those that are refused
    not_probed: list[str] = []  # which, and why, a line for each reason
    last_error: str | None = None  # why others cannot probe this node


class MeshNodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The MeshNode that an agent writes of its node, if it was told where."""

    written: bool = False  # it is there, and says what the agent knows
    last_error: str | None = None  # why it could not be written, when it could not


class EncryptionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent encrypts with. No private key is ever in it."""

    type: str = "none"
    driver: str = ""  # kernel, or wireguard-go
    public_key: str = ""
    previous_key: str = ""  # while it is being replaced
    key_age: float = 0.0  # seconds
    waits_for: str = ""  # while the key is being replaced: what, and whom
    devices: list[str] = []
    ports: list[int] = []  # UDP, that this node receives on
    peers: int = 0  # nodes
    answered: int = 0  # of them, ever
    last_error: str | None = None  # why the key cannot be changed


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """
    `/status` of either daemon.

    Only an agent has a node, a datapath, encryption and a MeshNode; only an apiserver has a source
    and an etcd. The remotes of an apiserver are those that it copies.
    """

    daemon: str
    version: str
    cluster: Cluster | None = None
    node: str = ""
    uptime: float = 0.0  # seconds
    ready: bool = False
    reasons: list[str] = []  # why it is not ready
    tables: dict[str, TableStatus] = {}
    datapath: Datapath | None = None
    remotes: list[Remote] = []
    refused: list[str] = []  # which addresses of which node are not used, and why
    conflicts: list[str] = []  # which frontend of which service is not used, and whose it is
    encryption: EncryptionStatus | None = None  # None: an apiserver, or nothing is encrypted
    paths: PathsStatus | None = None  # None: an apiserver, or an agent without a datapath
    mesh_node: MeshNodeStatus | None = None  # None: nowhere to write it
    source: SourceStatus | None = None
    etcd: EtcdStatus | None = None


# Made here and not where something is decoded: the first use of a struct by two threads at once
# crashes msgspec 0.22.
DAEMON_STATUS: Final = msgspec.json.Decoder(DaemonStatus)
TABLE_REPLY: Final = msgspec.json.Decoder(TableReply)

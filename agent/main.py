"""
The agent: joins a node to the mesh. Read me first.

    each etcd ──▶ tables ────rules────▶ tables ──reconcile──▶ this node's kernel
    (cluster.py)  (tables.py, Read)     (Derived)             (node.py: targets/, kernel/)

    nodes ─────cidrs──────────▶ cidrs ──┬─routes────▶ routes ────▶ netlink: our route table
                                        ├─ipcache─┐
    endpoints ─────────────────ipcache──┼─────────┴─▶ ipcache ───▶ BPF map
    services ──frontends────────────────┼───────────▶ frontends ─▶ BPF maps of the socket LB
    nodes ─────────────────────probes───┼───────────▶ probes ────▶ probes/: does it get through?
    keys ──────────────────────peers────┴───────────▶ peers ─────▶ encryption.py, if it is on

A row's origin is its cluster. `cidrs` decides whose an address is; what a cluster says about
another one's addresses counts for nothing in any of the rules after it. What the agent finds out
about its own node (own.py) goes the other way: meshnode/ tells the apiserver of it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Hashable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from clustermesh.daemon import Daemon, run
from clustermesh.etcd import Etcd, read_config
from clustermesh.follow import ClusterIds, Remotes
from clustermesh.model import ClusterId, ClusterName, L4Address, ObjectName
from clustermesh.state import Table, derive, derive_whole
from clustermesh.status import Cluster, RemoteState, RowFailure

from . import show
from .cache import Cache
from .cluster import ClusterReader
from .datapath_metrics import DatapathMetrics
from .encryption_metrics import EncryptionMetrics
from .kernel.wireguard.driver import PeerState
from .kernels import Kernel, NoKernel
from .meshnode import keep_mesh_node
from .node import BpfNode
from .own import OwnNode
from .probes import Here, PathMetrics, Paths
from .refused import RefusedMetrics, refused
from .rows import BackendState, Cidr, Frontend, PeerKey
from .rules.cidrs import CidrKey, Owners, cidrs
from .rules.ipcache import cidr_entries, endpoint_entries
from .rules.keys import closed
from .rules.peers import lanes, peers
from .rules.probes import probes
from .rules.routes import encrypted_routes, routes
from .rules.services import frontends
from .settings import AgentSettings
from .tables import Derived, Read

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def main() -> None:
    """Be the command `clustermesh-agent`."""
    sys.exit(run("agent", AgentSettings, serve_node))


async def serve_node(settings: AgentSettings, daemon: Daemon) -> None:
    """Keep the node joined until cancelled. Stopping leaves everything in the kernel as it is."""
    own = ClusterName(settings.cluster_name)
    read, derived = Read(), Derived()
    ids = ClusterIds(own, ClusterId(settings.cluster_id), settings.max_connected_clusters)
    cache = Cache(settings.state_dir / own / settings.node_name)
    own_etcd = Etcd(read_config(settings.local_etcd_config))
    home = ClusterReader(own, ids, read, cache, through=own_etcd)
    remotes = Remotes(
        settings.clusters_dir,
        own,
        lambda name: ClusterReader(
            name, ids, read, cache, through=own_etcd if settings.mirrored else None
        ),
    )
    await remotes.open()
    own_node = OwnNode(encrypts=settings.encrypts, has_kernel=settings.datapath == "bpf")
    node: Kernel = (
        BpfNode(settings, read, derived, own_node) if settings.datapath == "bpf" else NoKernel()
    )
    probing = Paths(
        Here(settings, node, own_node, read.nodes, derived.peers),
        derived.probes,
        settings.probe_port,
    )
    async with own_etcd, node, asyncio.TaskGroup() as tasks:
        _show(daemon, settings, read, derived, Parts(home, remotes, node, probing))
        tasks.create_task(home.run(lambda: own_etcd.config), name=f"cluster {own}")
        tasks.create_task(remotes.run(), name="remote clusters")
        tasks.create_task(keep_mesh_node(settings, daemon, own_node), name="MeshNode")
        # Whose an address is can be said only when our own addresses are known.
        await home.nodes_known()
        for name, derivation in _derivations(own, read, derived, settings):
            tasks.create_task(derivation, name=f"derive {name}")
        if settings.datapath == "bpf":
            tasks.create_task(probing.run(), name="probes")
        await node.run()


def _derivations(
    own: ClusterName, read: Read, derived: Derived, settings: AgentSettings
) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
    """Every rule, from what it reads to what it writes."""
    owner = Owners(derived.cidrs).owner
    route = (
        partial(encrypted_routes, own=own, routings=settings.routings, lane=derived.lanes.first)
        if settings.encrypts
        else partial(routes, own=own, routings=settings.routings)
    )

    def claims() -> Mapping[CidrKey, Cidr]:
        nodes = [node for _, node in _all(read.nodes)]
        shut = closed(nodes, own, read.own_keys.keys(), encrypts=settings.encrypts)
        return cidrs(nodes, own, _all(read.reserved), settings.allowed, shut)

    yield (
        "cidrs",
        derive_whole(
            (read.nodes, read.reserved, *((read.own_keys,) if settings.encrypts else ())),
            derived.cidrs.writer("rule"),
            claims,
        ),
    )
    yield (
        "routes",
        derive(
            (derived.cidrs,),
            derived.routes.writer("rule"),
            route,
            context=(derived.lanes,) if settings.encrypts else (),
        ),
    )
    if settings.encrypts:
        yield "peers", _derive_peers(own, read, derived, settings)
        yield "lanes", _derive_lanes(read, derived)
    yield (
        "probes",
        derive_whole(
            (read.nodes, derived.cidrs),
            derived.probes.writer("rule"),
            lambda: probes(
                (node for _, node in _all(read.nodes)),
                dict(_all(derived.cidrs)),
                own,
                settings.node_name,
                encrypts=settings.encrypts,
            ),
        ),
    )
    yield (
        "ipcache of endpoints",
        derive(
            (read.endpoints,),
            derived.ipcache.writer("endpoints"),
            partial(endpoint_entries, own=own, owner=owner),
            context=(derived.cidrs,),
        ),
    )
    yield (
        "ipcache of CIDRs",
        derive((derived.cidrs,), derived.ipcache.writer("cidrs"), partial(cidr_entries, own=own)),
    )
    yield (
        "frontends",
        derive(
            (read.services,),
            derived.frontends.writer("rule"),
            partial(frontends, own=own, owner=owner, encrypts=settings.encrypts),
            context=(derived.cidrs,),
            waiting=derived.waiting,
        ),
    )


async def _derive_peers(
    own: ClusterName, read: Read, derived: Derived, settings: AgentSettings
) -> None:
    await derive_whole(
        (derived.cidrs, read.keys, read.own_keys),
        derived.peers.writer("rule"),
        lambda: peers(
            _all(derived.cidrs),
            dict(_all(read.keys)),
            dict(_all(read.own_keys)),
            own=own,
            port=settings.encryption_port,
            keepalive=settings.encryption_keepalive,
        ),
    )


async def _derive_lanes(read: Read, derived: Derived) -> None:
    writer = derived.lanes.writer("rule")
    # An agent that has just started must not lead anybody back to a lane that is about to go.
    await read.sessions.ready()
    await derive_whole(
        (derived.peers, read.sessions),
        writer,
        lambda: lanes(dict(_all(derived.peers)), read.sessions.keys()),
    )


def _all(table: Table[K, V]) -> Iterator[tuple[K, V]]:
    return ((key, row) for key in table.keys() for row in table.rows(key).values())


def _unencrypted(table: Table[L4Address, Frontend]) -> Iterator[str]:
    """Which services have backends that nothing leads to over WireGuard."""
    for address, frontend in _all(table):
        shut = [b for b in frontend.backends if b.state is BackendState.UNENCRYPTED]
        if shut:
            clusters = ", ".join(sorted({backend.cluster for backend in shut}))
            yield (
                f"service {frontend.service}: of {address}, {len(shut)} backends of {clusters} are"
                " in no pod CIDR and no node that is routed, so they would be called in plain text"
            )


def _seen(node: Kernel, key: PeerKey) -> PeerState | None:
    return node.encryption.seen(key) if node.encryption else None


class Parts(NamedTuple):
    """What has a status of its own."""

    home: ClusterReader
    remotes: Remotes[ClusterReader]
    node: Kernel
    probing: Paths


def _show(
    daemon: Daemon,
    settings: AgentSettings,
    read: Read,
    derived: Derived,
    parts: Parts,
) -> None:
    home, remotes, node, probing = parts
    waiting = derived.waiting

    def bad_rows(kind: str) -> Iterator[RowFailure]:
        yield from home.bad_rows(kind)
        yield from remotes.bad_rows(kind)

    def lost(key: ObjectName) -> list[str]:
        holders = ((address, derived.frontends.first(address)) for address in waiting.rows(key))
        return [f"{address} is the address of {row.service}" for address, row in holders if row]

    def conflicts() -> list[str]:
        lost_ = [f"service {key}: {cause}" for key, _ in waiting.items() for cause in lost(key)]
        return lost_ + ([*_unencrypted(derived.frontends)] if settings.encrypts else [])

    def unread() -> str | None:
        status = home.status()
        if status.state is RemoteState.READY:
            return None
        return f"our own etcd: {status.last_error or status.state}"

    daemon.add_status("cluster", lambda: Cluster(settings.cluster_name, settings.cluster_id))
    daemon.add_status("node", lambda: settings.node_name)
    daemon.add_status("datapath", node.status)
    daemon.metrics.register(DatapathMetrics(node.status))
    if node.encryption is not None:
        daemon.add_status("encryption", node.encryption.status)
        daemon.metrics.register(EncryptionMetrics(node.encryption.status))
    daemon.add_status("home", home.status)
    daemon.add_remotes(remotes.status)
    daemon.add_status("refused", partial(refused, derived.cidrs))
    daemon.metrics.register(RefusedMetrics(derived.cidrs))
    daemon.add_status("conflicts", conflicts)
    daemon.add_status("paths", probing.status)
    daemon.metrics.register(PathMetrics(probing.status))
    daemon.add_readiness("cluster", unread)
    daemon.add_readiness("datapath", node.unready)
    daemon.add_table(
        "services",
        read.services,
        partial(show.service, own=home.name, conflicts=lost),
        bad_rows=partial(bad_rows, "services"),
    )
    daemon.add_table("nodes", read.nodes, show.node, bad_rows=partial(bad_rows, "nodes"))
    daemon.add_table(
        "identities", read.identities, show.identity, bad_rows=partial(bad_rows, "identities")
    )
    daemon.add_table(
        "endpoints", read.endpoints, show.endpoint, bad_rows=partial(bad_rows, "endpoints")
    )
    daemon.add_table(
        "peers",
        derived.peers,
        partial(show.peer, seen=partial(_seen, node), now=time.time),
        reconcilers=node.reconcilers("peers"),
    )
    daemon.add_table("cidrs", derived.cidrs, show.cidr)
    if settings.encrypts:
        daemon.add_table(
            "devices", read.devices, show.device, reconcilers=node.reconcilers("devices")
        )
    daemon.add_table("paths", probing.table, probing.show)
    daemon.add_table(
        "frontends", derived.frontends, show.frontend, reconcilers=node.reconcilers("frontends")
    )
    daemon.add_table("routes", derived.routes, show.route, reconcilers=node.reconcilers("routes"))
    if settings.fast_path == "on":
        daemon.add_table("pods", read.pods, show.pod, reconcilers=node.reconcilers("pods"))
    daemon.add_table(
        "ipcache", derived.ipcache, show.ipcache, reconcilers=node.reconcilers("ipcache")
    )

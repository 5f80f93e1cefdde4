"""
The apiserver: publishes what a cluster shares with the mesh. Read me first.

    Kubernetes ────▶ objects ──rules──▶ exports ──reconcile──▶ etcd
    or a directory   (tables.py)        (tables.py)            (export.py)
    (backing.py)

    Service + EndpointSlices ──services──▶ services ──▶ cilium/state/services/, clustermesh/local/
    Node + MeshNode ─────────nodes───────▶ nodes ─────▶ cilium/state/nodes/
    Pod + Namespace ─────────claims──────▶ claims ──┬─▶ allocator ▶ identities ▶ …/identities/
                                                    └─endpoints──▶ endpoints ──▶ cilium/state/ip/

    the other clusters' etcds ──Mirror──▶ cilium/cache/                    (mirror.py, --mirror)

Each replica keeps all of the etcd beside it; the one that leads also gives the identities.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from clustermesh.daemon import Daemon, run
from clustermesh.etcd import Etcd, make_config
from clustermesh.follow import ClusterIds, Remotes
from clustermesh.model import (
    ClusterConfig,
    ClusterId,
    ClusterName,
    Identity,
    IdentityId,
    IPAddress,
    ObjectName,
    identity_range,
)
from clustermesh.state import Index, derive
from clustermesh.status import Cluster, EtcdStatus, Problem, SourceStatus

from . import show
from .allocator import Allocator
from .backing import Backing, open_backing
from .export import Exporter
from .mirror import Mirror
from .objects import EndpointSlice, Pod
from .rules.endpoints import Claim, Labels, claims, endpoints
from .rules.nodes import nodes
from .rules.services import services
from .settings import ApiserverSettings
from .tables import Exports, Objects
from .users import Users


def main() -> None:
    """Be the command `clustermesh-apiserver`."""
    sys.exit(run("apiserver", ApiserverSettings, serve_cluster))


async def serve_cluster(settings: ApiserverSettings, daemon: Daemon) -> None:
    """Publish the cluster until cancelled. Stopping withdraws nothing."""
    cluster = ClusterName(settings.cluster_name)
    cluster_id = ClusterId(settings.cluster_id)
    objects, exports = Objects(), Exports()
    claimed = Index("claims by labels", exports.claims, lambda _, row: (row.labels,))
    given = Index("identities by labels", exports.identities, lambda _, row: (row.labels,))
    numbers = identity_range(cluster_id, settings.max_connected_clusters)
    etcd_config = make_config(
        settings.etcd_endpoints,
        settings.etcd_ca,
        settings.etcd_cert,
        settings.etcd_key,
        where="--etcd-endpoints",
    )
    async with (
        open_backing(settings, objects, numbers) as backing,
        Etcd(etcd_config) as etcd,
        asyncio.TaskGroup() as tasks,
    ):
        allocator = Allocator(claimed, exports.identities, given, numbers, backing.store)
        users = Users(etcd, cluster, settings.clusters_dir)
        exporter = Exporter(etcd, users, cluster, exports)
        _show(daemon, settings, Parts(backing, exports, allocator, users, exporter))
        if settings.mirror and settings.clusters_dir is not None:
            ids = ClusterIds(cluster, cluster_id, settings.max_connected_clusters)
            mirrors = Remotes(
                settings.clusters_dir, cluster, lambda name: Mirror(name, ids, etcd, users)
            )
            daemon.add_remotes(mirrors.status)
            tasks.create_task(_follow(mirrors), name="mirrors")
        tasks.create_task(backing.source.run(), name="source")
        tasks.create_task(allocator.run(), name="follow identities")
        tasks.create_task(backing.leadership.run(allocator.lead), name="lead")
        tasks.create_task(users.run(), name="users")
        for name, derivation in _derivations(
            cluster, cluster_id, objects, exports, claimed=claimed, given=given
        ):
            tasks.create_task(derivation, name=f"derive {name}")
        await users.set_up.wait()
        await exporter.run(ClusterConfig(cluster_id, settings.max_connected_clusters))


async def _follow(mirrors: Remotes[Mirror]) -> None:
    await mirrors.open()
    await mirrors.run()


def _derivations(
    cluster: ClusterName,
    cluster_id: ClusterId,
    objects: Objects,
    exports: Exports,
    *,
    claimed: Index[Labels, IPAddress, Claim],
    given: Index[Labels, IdentityId, Identity],
) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
    """Every rule, from what it reads to what it writes."""
    services_of = partial(services, cluster=cluster, cluster_id=cluster_id)
    nodes_of = partial(nodes, cluster=cluster, cluster_id=cluster_id)
    slices = Index("slices by service", objects.slices, _service_of)

    def claims_of(key: ObjectName, pods: Mapping[str, Pod]) -> Mapping[IPAddress, Claim]:
        namespace = objects.namespaces.first(ObjectName("", key.namespace))
        return claims(key, pods, namespace, cluster=cluster)

    yield (
        "services",
        derive((objects.services, slices), exports.services.writer("rule"), services_of),
    )
    yield (
        "nodes",
        derive(
            (objects.nodes, objects.mesh_nodes),
            exports.nodes.writer("rule"),
            nodes_of,
        ),
    )
    yield (
        "claims",
        derive(
            (objects.pods,), exports.claims.writer("rule"), claims_of, context=(objects.namespaces,)
        ),
    )
    yield "endpoints", derive((claimed, given), exports.endpoints.writer("rule"), endpoints)


def _service_of(_: ObjectName, piece: EndpointSlice) -> Iterable[ObjectName]:
    return (piece.service,) if piece.service else ()


class Parts(NamedTuple):
    """What the daemon shows."""

    backing: Backing
    exports: Exports
    allocator: Allocator
    users: Users
    exporter: Exporter


def _show(daemon: Daemon, settings: ApiserverSettings, parts: Parts) -> None:
    (source, _, leadership), exports, allocator, users, exporter = parts
    reconcilers = exporter.reconcilers

    def source_status() -> SourceStatus:
        found = (*source.problems, *allocator.problems)
        problems = [Problem(p.where, p.error) for p in found]
        if leadership.problem:
            problems.append(Problem("election", leadership.problem))
        return SourceStatus(
            kind=settings.source,
            listed=source.listed,
            objects=source.count,
            problems=problems,
            leader=leadership.leader,
        )

    def etcd_status() -> EtcdStatus:
        failures = (r.target_failure for r in reconcilers.values())
        error = next((str(f.error) for f in failures if f), users.last_error)
        return EtcdStatus(
            endpoints=list(settings.etcd_endpoints),
            connected=users.set_up.is_set() and error is None,
            last_error=error,
        )

    def unprotected() -> str | None:
        return None if users.set_up.is_set() else users.last_error or "not set up yet"

    def unpublished() -> str | None:
        missing = [name for name, r in reconcilers.items() if not r.synced.is_set()]
        return f"not all in etcd yet: {', '.join(missing)}" if missing else None

    daemon.add_status("cluster", lambda: Cluster(settings.cluster_name, settings.cluster_id))
    daemon.add_status("source", source_status)
    daemon.add_status("etcd", etcd_status)
    daemon.add_readiness("source", lambda: None if source.listed else "not listed yet")
    daemon.add_readiness("users", unprotected)
    daemon.add_readiness("etcd", unpublished)
    daemon.add_table(
        "services",
        exports.services,
        show.service,
        reconcilers=[reconcilers["services"], reconcilers["local-services"]],
    )
    daemon.add_table("nodes", exports.nodes, show.node, reconcilers=[reconcilers["nodes"]])
    daemon.add_table(
        "identities", exports.identities, show.identity, reconcilers=[reconcilers["identities"]]
    )
    daemon.add_table(
        "endpoints", exports.endpoints, show.endpoint, reconcilers=[reconcilers["endpoints"]]
    )

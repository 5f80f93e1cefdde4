"""`clustermesh connect` and `disconnect`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, NamedTuple

from cyclopts import Parameter

from clustermesh.errors import UserError
from clustermesh.etcd.config import read_config
from clustermesh.etcd.probe import probe_endpoint
from clustermesh.kube import Kube, KubeError
from clustermesh.model import ClusterName, parse_cluster_name
from clustermesh.settings import CommaSeparated

from .changes import check_helm, make
from .checks import Finding, findings
from .helm import Helm
from .installation import open_kube, read_cluster, read_login
from .layout import laid_out
from .options import Chart, Flag, HelmProgram, Kubeconfig, Namespace, parse_endpoints, run
from .plan import (
    Change,
    Disconnect,
    Link,
    Mode,
    Trust,
    connecting,
    disconnecting,
    left_to_do,
    links,
    peer_file,
)
from .rows import ClusterRow

_Destinations = Annotated[
    CommaSeparated,
    Parameter(name="--destination-context", help="Contexts of the others, with commas."),
]


def connect(
    *,
    context: str,
    destination_context: _Destinations,
    connection_mode: Mode = "bidirectional",
    endpoint: CommaSeparated = (),
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    chart: Chart = None,
    helm: HelmProgram = "helm",
    dry_run: Annotated[bool, Flag] = False,
) -> None:
    """
    Connect clusters. Everything is checked before anything is changed; run again, it goes on.

    Parameters
    ----------
    context
        Context of the cluster that is connected.
    connection_mode
        bidirectional: with each destination, both ways. mesh: all with all. unicast: only the
        cluster of --context is changed; its destinations have administrators of their own.
    endpoint
        NAME=HOST:PORT at which others reach the etcd of the cluster NAME, where its Service does
        not say; may be given several times.
    dry_run
        Check, and say what would be done.
    """
    wanted = links(context, _others(context, destination_context), connection_mode)
    release = _Release(kubeconfig, helm, chart)
    run(_connect(wanted, parse_endpoints(endpoint), namespace, release, dry_run=dry_run))


def disconnect(
    *,
    context: str,
    destination_context: _Destinations = (),
    destination_cluster: CommaSeparated = (),
    connection_mode: Mode = "bidirectional",
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    dry_run: Annotated[bool, Flag] = False,
) -> None:
    """
    Disconnect clusters: agents withdraw what the other said. CAs that were merged stay trusted.

    Parameters
    ----------
    context
        Context of the cluster that is disconnected.
    destination_cluster
        Names of others that cannot be asked any more, in place of contexts: only the cluster of
        --context is changed.
    connection_mode
        bidirectional: from each destination, both ways. mesh: all from all. unicast: only the
        cluster of --context is changed.
    dry_run
        Say what would be done.
    """
    names = list(map(parse_cluster_name, destination_cluster))
    unwanted = []
    if destination_context or not names:
        unwanted = links(context, _others(context, destination_context), connection_mode)
    release = _Release(kubeconfig, "", None)
    run(_disconnect(context, unwanted, names, namespace, release, dry_run=dry_run))


class _Release(NamedTuple):
    """How clusters are reached, and their releases changed."""

    kubeconfig: Path | None
    helm: str
    chart: str | None

    def helm_of(self, context: str) -> Helm:
        return Helm(self.helm, self.kubeconfig, context)


def _others(context: str, destinations: Sequence[str]) -> list[str]:
    others = list(dict.fromkeys(destinations))
    if context in others:
        raise UserError(f"{context} cannot be connected with itself", hint="name the others only")
    if not others:
        raise UserError("no other cluster is named", hint="say --destination-context CONTEXT")
    return others


async def _connect(
    wanted: Sequence[Link],
    endpoints: Mapping[str, Sequence[str]],
    namespace: str | None,
    release: _Release,
    *,
    dry_run: bool,
) -> None:
    async with opened(release.kubeconfig, _contexts(wanted)) as kubes:
        clusters = await read_clusters(kubes, namespace, endpoints)
        changes = list(connecting(clusters, wanted))
        found = [*findings(clusters, wanted), *_unpossible(changes, clusters, release)]
        for cluster in clusters:
            print(_introduction(cluster))
            if any(link.peer == cluster.context for link in wanted) and cluster.endpoints:
                found += await _unreachable(kubes[cluster.context], cluster)
        _report(found)
        await _make(changes, clusters, kubes, release, dry_run=dry_run)
        for text in left_to_do(clusters, wanted):
            print(f"left to do: {text}")
        if any(isinstance(change, Trust) for change in changes):
            print("if you keep values of helm in files: add tls.caBundle.enabled=true to them")
        if changes and not dry_run:
            flags = " ".join(f"--context {cluster.context}" for cluster in clusters)
            print("nodes hear of it within two minutes; see that all is well:")
            print(f"  clustermesh status {flags} --wait")


async def _disconnect(
    context: str,
    unwanted: Sequence[Link],
    names: Sequence[ClusterName],
    namespace: str | None,
    release: _Release,
    *,
    dry_run: bool,
) -> None:
    contexts = dict.fromkeys([context, *_contexts(unwanted)])
    async with opened(release.kubeconfig, contexts) as kubes:
        clusters = await read_clusters(kubes, namespace, {})
        _report(
            Finding(
                f"{cluster.name}: its connected clusters are written by helm",
                "take them out of clustermesh.config.clusters",
            )
            for cluster in clusters
            if cluster.peers_by_chart
        )
        changes: list[Change] = list(disconnecting(clusters, unwanted))
        peers = next(cluster.peers for cluster in clusters if cluster.context == context)
        changes += (Disconnect(context, name) for name in names if name in peers)
        await _make(changes, clusters, kubes, release, dry_run=dry_run)


def _contexts(wanted: Iterable[Link]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(wanted)))


@asynccontextmanager
async def opened(
    kubeconfig: Path | None, contexts: Iterable[str]
) -> AsyncIterator[dict[str, Kube]]:
    """The API servers of contexts."""
    async with AsyncExitStack() as stack:
        yield {
            context: await stack.enter_async_context(open_kube(kubeconfig, context))
            for context in contexts
        }


async def read_clusters(
    kubes: Mapping[str, Kube], namespace: str | None, endpoints: Mapping[str, Sequence[str]]
) -> list[ClusterRow]:
    """
    What the clusters are.

    Args:
        endpoints: HOST:PORT by the name of the cluster that is reached there.

    Raises:
        UserError: one of them is none of ours, or `endpoints` names none of them.
    """
    clusters = [await read_cluster(kube, name, namespace) for name, kube in kubes.items()]
    if unknown := set(endpoints) - {cluster.name for cluster in clusters}:
        names = ", ".join(cluster.name for cluster in clusters)
        raise UserError(f"there is no cluster {', '.join(unknown)}", hint=f"there is {names}")
    return [cluster.reached_at(endpoints.get(cluster.name, ())) for cluster in clusters]


def _introduction(cluster: ClusterRow) -> str:
    where = " ".join(cluster.endpoints) or "nowhere"
    return (
        f"{cluster.name} (id {cluster.id}): context {cluster.context}, namespace "
        f"{cluster.namespace}, {len(cluster.nodes)} nodes, etcd at {where}"
    )


def _unpossible(
    changes: Iterable[Change], clusters: Sequence[ClusterRow], release: _Release
) -> Iterable[Finding]:
    """Why helm could not do its part."""
    by_context = {cluster.context: cluster for cluster in clusters}
    for change in changes:
        if isinstance(change, Trust):
            cluster = by_context[change.context]
            if why := check_helm(cluster, release.helm_of(change.context), release.chart):
                yield Finding(why, "say --helm PROGRAM, --chart CHART, or give them one CA")


async def _unreachable(kube: Kube, peer: ClusterRow) -> list[Finding]:
    """Whether we would find the etcd of a cluster where others are told to look for it."""
    login = await read_login(kube, peer)
    with laid_out({peer.name: peer_file(peer).encode()}, login) as directory:
        config = read_config(directory / peer.name)
        causes = await asyncio.gather(
            *(asyncio.to_thread(probe_endpoint, config, one) for one in config.endpoints)
        )
    if None in causes:
        return []
    why = "; ".join(f"{e.authority}: {c}" for e, c in zip(config.endpoints, causes, strict=True))
    return [
        Finding(
            f"the etcd of {peer.name} cannot be reached from this machine: {why}",
            "it is the nodes of the others that have to; status will tell",
            is_fatal=False,
        )
    ]


def _report(found: Iterable[Finding]) -> None:
    """Print findings. Raises UserError if one of them is fatal."""
    fatal = 0
    for finding in found:
        fatal += finding.is_fatal
        print(f"{'error' if finding.is_fatal else 'warning'}: {finding.text}")
        if finding.hint:
            print(f"  {finding.hint}")
    if fatal:
        raise UserError(f"nothing was changed: {fatal} of the above stand in the way")


async def _make(
    changes: Sequence[Change],
    clusters: Sequence[ClusterRow],
    kubes: Mapping[str, Kube],
    release: _Release,
    *,
    dry_run: bool,
) -> None:
    by_context = {cluster.context: cluster for cluster in clusters}
    if not changes:
        print("nothing is to be changed")
    for number, change in enumerate(changes):
        cluster = by_context[change.context]
        print(f"{cluster.name}: {change}{' (not done: dry run)' if dry_run else ''}", flush=True)
        if dry_run:
            continue
        helm = release.helm_of(change.context)
        try:
            await make(change, cluster, kubes[change.context], helm, release.chart)
        except (KubeError, UserError) as error:
            raise UserError(
                f"that failed: {error}",
                hint=f"{number} of {len(changes)} changes are done; run it again to go on",
            ) from error

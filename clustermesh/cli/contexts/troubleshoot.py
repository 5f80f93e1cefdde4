"""`clustermesh troubleshoot`: what an agent does to reach a peer, one step after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from clustermesh.errors import UserError
from clustermesh.model import ClusterName
from clustermesh.settings import CommaSeparated

from .installation import open_kube, read_cluster, read_login
from .layout import laid_out
from .objects import CLUSTERS, SECRETS, read_data
from .options import Kubeconfig, Namespace, run
from .plan import peers_of
from .steps import Step, steps

_MARKS: Final = {True: "ok  ", False: "FAIL", None: "    "}


def troubleshoot(
    *,
    context: str | None = None,
    clusters_dir: Annotated[Path, Parameter(env_var="CLUSTERMESH_CLUSTERS_DIR")] = Path(
        "/etc/clustermesh/clusters"
    ),
    peer: CommaSeparated = (),
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> int:
    """
    Do what an agent does to reach each peer, and print how far it comes. 0 only if all is well.

    From this machine, which need not reach what nodes do; on a node's own way in its agent:
    kubectl exec ds/clustermesh-agent -- clustermesh troubleshoot

    Parameters
    ----------
    context
        Context of the cluster whose peers are tried, with its certificates. Without it they are
        in --clusters-dir.
    clusters_dir
        Directory with a file for each connected cluster, as the daemons have it.
    peer
        Only these clusters.
    """
    if context:
        return run(_of_context(context, namespace, kubeconfig, peer))
    return run(_of_directory(clusters_dir, peer, {}))


async def _of_context(
    context: str, namespace: str | None, kubeconfig: Path | None, wanted: Iterable[str]
) -> int:
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(open_kube(kubeconfig, context))
        cluster = await read_cluster(kube, context, namespace)
        login = await read_login(kube, cluster)
        clusters = await read_data(kube, SECRETS, CLUSTERS, cluster.namespace)
        directory = stack.enter_context(laid_out(clusters.decoded(), login))
        print(f"{cluster.name} (id {cluster.id}): {len(cluster.peers)} peers")
        return await _of_directory(directory, wanted, {cluster.id: cluster.name})


async def _of_directory(
    directory: Path, wanted: Iterable[str], ids: Mapping[int, ClusterName]
) -> int:
    """
    Try the peers that `directory` has files for.

    Args:
        ids: who has which cluster id already.
    """
    if not directory.is_dir():
        raise UserError(
            f"there is no directory {directory}", hint="say --context or --clusters-dir"
        )
    names = peers_of({path.name: "" for path in directory.iterdir() if path.is_file()})
    chosen = sorted(set(wanted) or names)
    if unknown := set(chosen) - names.keys():
        known = ", ".join(sorted(names)) or "nobody"
        raise UserError(f"not connected with {', '.join(unknown)}", hint=f"connected with {known}")
    if not chosen:
        print("no cluster is connected")
    taken = dict(ids)
    failed = False
    for name in chosen:
        print(f"\n{name}")
        async for step in steps(ClusterName(name), directory / name, taken):
            failed |= step.is_good is False
            _print(step)
    return 1 if failed else 0


def _print(step: Step) -> None:
    print(f"  {_MARKS[step.is_good]}  {step.name:<15} {step.text}".rstrip())
    for line in step.details:
        print(f"  {'':<22}{line}")

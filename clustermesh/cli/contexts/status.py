"""`clustermesh status --context …`: whole clusters, by what their daemons say."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from clustermesh.errors import UserError
from clustermesh.kube import Kube, KubeError

from .connect import opened
from .installation import find_apiserver, read_settings
from .objects import AGENT, CLUSTERS, CONFIG_MAPS, DAEMON_SETS, SECRETS, Data, Workload, read_data
from .options import run
from .overview import Overview, Seen, facts, overview
from .plan import peers_of
from .pods import ask_all, find_pods

if TYPE_CHECKING:
    from rich.table import Table

_POLL: Final = 1.0  # seconds between two looks while waiting


def status_of_clusters(
    contexts: Sequence[str],
    *,
    namespace: str | None,
    kubeconfig: Path | None,
    output: str,
    timeout: float,
) -> int:
    """
    Print how the clusters are, and return 0 only if all is well.

    Args:
        timeout: seconds to look again in, until all is well.
    """
    found = run(_look_until_well(contexts, namespace, kubeconfig, timeout))
    if output == "json":
        sys.stdout.buffer.write(msgspec.json.encode({"clusters": found}) + b"\n")
    else:
        _print(found)
    return 1 if any(one.troubles for one in found) else 0


async def _look_until_well(
    contexts: Sequence[str], namespace: str | None, kubeconfig: Path | None, timeout: float
) -> list[Overview]:
    deadline = time.monotonic() + timeout
    async with opened(kubeconfig, contexts) as kubes:
        while True:
            found = await _look(kubes, namespace)
            if time.monotonic() >= deadline or not any(one.troubles for one in found):
                return found
            await asyncio.sleep(_POLL)


async def _look(kubes: Mapping[str, Kube], namespace: str | None) -> list[Overview]:
    return await asyncio.gather(
        *(_look_at(kube, context, namespace) for context, kube in kubes.items())
    )


async def _look_at(kube: Kube, context: str, namespace: str | None) -> Overview:
    """A cluster that cannot be looked at is an overview with that trouble."""
    try:
        return overview(await see(kube, context, namespace))
    except (KubeError, UserError) as error:
        return Overview(context=context, namespace=namespace or "", troubles=[str(error)])


async def see(kube: Kube, context: str, namespace: str | None) -> Seen:
    """
    Ask everybody in a cluster.

    Raises:
        UserError: nothing is installed there.
        KubeError: the API server. That a daemon does not answer is in what is returned.
    """
    deployment = await find_apiserver(kube, context, namespace)
    there = deployment.metadata.namespace
    config, daemons, clusters, apiservers, agents = await asyncio.gather(
        kube.get(CONFIG_MAPS, "clustermesh-config", Data, namespace=there),
        kube.get(DAEMON_SETS, AGENT, Workload, namespace=there),
        read_data(kube, SECRETS, CLUSTERS, there),
        find_pods(kube, there, "apiserver"),
        find_pods(kube, there, "agent"),
    )
    settings = read_settings(context, config)
    return Seen(
        context=context,
        namespace=there,
        name=settings.cluster_name,
        id=settings.cluster_id,
        version=deployment.metadata.labels.get("app.kubernetes.io/version", ""),
        peers=sorted(peers_of(dict.fromkeys(clusters.data, ""))),
        apiservers=deployment.spec.replicas,
        agents=daemons.status.desired_number_scheduled,
        apiserver_answers=await ask_all(kube, apiservers, "apiserver"),
        agent_answers=await ask_all(kube, agents, "agent"),
    )


def _print(found: Sequence[Overview]) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for one in found:
        console.print(Text(_title(one), "bold"))
        if one.name:
            console.print(_daemons(one))
        if one.peers:
            console.print(_peers(one))
        for line in one.troubles:
            console.print(Text(line, "red"))
        for line in one.warnings:
            console.print(Text(line, "yellow"))
        if not one.troubles:
            console.print(Text("all is well", "green"))
        console.print()


def _title(one: Overview) -> str:
    name = f"{one.name} (id {one.id}), " if one.name else ""
    version = f", version {one.version}" if one.version else ""
    return f"{name}context {one.context}{version}"


def _daemons(one: Overview) -> Table:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    for name, ready, wanted, words in (
        ("apiservers", one.apiservers_ready, one.apiservers, facts(one)),
        ("agents", one.agents_ready, one.agents, ""),
    ):
        colour = "green" if ready == wanted > 0 else "red"
        table.add_row(Text(name), Text(f"{ready} of {wanted} ready", colour), Text(words))
    return table


def _peers(one: Overview) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("PEER", "ID", "READY"):
        table.add_column(header)
    for header in ("NODES", "SERVICES", "IDENTITIES", "ENDPOINTS"):
        table.add_column(header, justify="right")
    for header in ("PATHS", "WORST PATH", "LAST FAILURE"):
        table.add_column(header)
    for peer in one.peers:
        counts = (peer.nodes, peer.services, peer.identities, peer.endpoints)
        number = "-" if peer.id is None else str(peer.id)
        ready = f"{peer.ready} of {peer.agents}"
        is_well = peer.ready == peer.agents > 0 and not peer.worst_path
        paths = f"{peer.paths_well} of {peer.paths}" if peer.paths else "-"
        causes = (peer.worst_path or "-", peer.last_failure or "-")
        cells = (peer.name, number, ready, *map(str, counts), paths, *causes)
        table.add_row(*cells, style="green" if is_well else "red")
    return table

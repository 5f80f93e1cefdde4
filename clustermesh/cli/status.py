from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from cyclopts import App, Parameter

from clustermesh.errors import UserError
from clustermesh.settings import CommaSeparated
from clustermesh.status import DAEMON_STATUS, ClusterPaths, DaemonStatus, Remote, RemoteState

from .client import (
    AGENT,
    APISERVER,
    AgentAddress,
    ApiserverAddress,
    NotRunningError,
    Output,
    decode,
    get,
)

if TYPE_CHECKING:
    from rich.table import Table

app = App(name="status", help="Sum up clusters, or the daemons on this machine.")

_POLL: Final = 0.2
"""Seconds between two looks while waiting."""

_CLAIMS: Final = 5
"""Claims that are told one by one: two clusters with the same plan of CIDRs overlap in all."""

_COLOURS: Final = {
    RemoteState.READY: "green",
    RemoteState.CONNECTING: "yellow",
    RemoteState.LISTING: "yellow",
    RemoteState.REFUSED: "red",
    RemoteState.FAILED: "red",
}


_EXPECTED_DROPS: Final = {"MULTICAST"}
"""What every tunnel device says to neighbours that it does not have, whenever it comes up."""


class Report(msgspec.Struct, frozen=True):
    """What the daemons said, and what is wrong with that."""

    daemons: Mapping[str, bytes]  # their answers, by name
    troubles: Sequence[str]  # empty: all is well
    warnings: Sequence[str] = ()  # worth a look, but nothing is in the wrong place

    def statuses(self) -> Iterator[DaemonStatus]:
        """The answers, read."""
        for body in self.daemons.values():
            yield DAEMON_STATUS.decode(body)


@app.default
def status(
    *,
    agent: AgentAddress = AGENT,
    apiserver: ApiserverAddress | None = None,
    context: CommaSeparated = (),
    namespace: Annotated[str | None, Parameter(name=("--namespace", "-n"))] = None,
    kubeconfig: Path | None = None,
    output: Output = "table",
    wait: Annotated[bool, Parameter(negative="")] = False,
    wait_timeout: float | None = None,
) -> int:
    """
    Sum up clusters, or the daemons on this machine. The exit code is 0 only when all is well.

    Args:
        context: Contexts of a kubeconfig, with commas or given several times: those clusters are
            summed up, and not this machine.
        namespace: With --context: that of the installation; by default it is looked for.
        kubeconfig: With --context: the file; by default what kubectl reads.
        agent: Where the agent answers: http://HOST:PORT or unix:PATH; `none` leaves it out.
        apiserver: The same for the apiserver. If not given, it is looked for at its default
            address and may be absent.
        wait: Look again until all is well.
        wait_timeout: Seconds to wait at most; by default 60, with --context 300.
    """
    if context:
        from .contexts.status import status_of_clusters  # noqa: PLC0415 - takes long to import

        return status_of_clusters(
            context,
            namespace=namespace,
            kubeconfig=kubeconfig,
            output=output,
            timeout=(wait_timeout or 300.0) if wait else 0.0,
        )

    def look() -> Report:
        return gather(agent, apiserver)

    report = wait_until_well(look, (wait_timeout or 60.0) if wait else 0.0)
    if output == "json":
        answers = {name: msgspec.Raw(body) for name, body in report.daemons.items()}
        whole = {**answers, "troubles": report.troubles, "warnings": report.warnings}
        sys.stdout.buffer.write(msgspec.json.encode(whole) + b"\n")
    else:
        _print(report)
    return 1 if report.troubles else 0


def wait_until_well(
    look: Callable[[], Report],
    timeout: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Look until there is no trouble, or for `timeout` seconds; give the last report."""
    deadline = now() + timeout
    while (report := look()).troubles and now() < deadline:
        sleep(_POLL)
    return report


def gather(agent: str, apiserver: str | None) -> Report:
    """Ask the daemons; `none` is not asked, and an apiserver of None may be absent."""
    answers: dict[str, bytes] = {}
    troubles: list[str] = []
    warnings: list[str] = []
    for name, address in (("agent", agent), ("apiserver", apiserver or APISERVER)):
        if address == "none":
            continue
        try:
            body = get(name, address, "/status")
            said = decode(name, address, body, DAEMON_STATUS)
        except NotRunningError as error:
            if name == "agent" or apiserver is not None:
                troubles.append(str(error))
        except UserError as error:
            troubles.append(str(error))
        else:
            answers[name] = body
            troubles += (f"{name}: {text}" for text in troubles_of(said))
            warnings += (f"{name}: {text}" for text in warnings_of(said))
    if not answers and not troubles:
        troubles.append("no daemon was asked")
    return Report(answers, troubles, warnings)


def troubles_of(said: DaemonStatus) -> Iterator[str]:
    """Why not all is well with a daemon, a line each."""
    for reason in said.reasons:
        yield f"not ready: {reason}"
    if not said.ready and not said.reasons:
        yield "not ready"
    for remote in said.remotes:
        if remote.state is not RemoteState.READY:
            cause = f": {remote.last_error}" if remote.last_error else ""
            yield f"{remote.cluster} is {remote.state} for {ago(remote.since)}{cause}"
    for name, table in said.tables.items():
        if table.failures:
            yield f"{table.failures} of {name} are not in place: see clustermesh show {name}"
    yield from said.refused[:_CLAIMS]
    if more := len(said.refused[_CLAIMS:]):
        yield f"{more} more CIDRs are refused: see clustermesh show cidrs"
    yield from said.conflicts[:_CLAIMS]
    if more := len(said.conflicts[_CLAIMS:]):
        yield f"{more} more frontends are not used: see clustermesh show services"
    yield from _troubles_of_paths(said)
    yield from _troubles_outside(said)


def _troubles_of_paths(said: DaemonStatus) -> Iterator[str]:
    """The same, for the ways that packets take."""
    if said.paths is None:
        return
    yield from said.paths.failing[:_CLAIMS]
    if more := len(said.paths.failing[_CLAIMS:]):
        yield f"{more} more paths fail: see clustermesh show paths"
    if said.paths.last_error:
        yield f"others cannot probe this node: {said.paths.last_error}"


def _troubles_outside(said: DaemonStatus) -> Iterator[str]:
    """The same, for what the daemon works with: its kernel, Kubernetes, its etcd."""
    if said.datapath and said.datapath.mode == "bpf" and not said.datapath.attached:
        yield "the BPF programs are not attached"
    if said.encryption and said.encryption.last_error:
        yield f"its WireGuard key cannot be changed: {said.encryption.last_error}"
    if said.mesh_node and said.mesh_node.last_error:
        yield f"its MeshNode is not written: {said.mesh_node.last_error}"
    if said.source:
        for problem in said.source.problems:
            yield f"{said.source.kind}: {problem.where}: {problem.error}"
        if not said.source.listed:
            yield f"{said.source.kind} has not been read"
    if said.etcd and not said.etcd.connected:
        yield f"etcd does not answer: {said.etcd.last_error or 'not connected yet'}"


def warnings_of(said: DaemonStatus) -> Iterator[str]:
    """What is worth a look: bad rows were skipped and the rest works; drops may be long ago."""
    for remote in said.remotes:
        if remote.bad_rows:
            yield f"{remote.cluster}: skipped {remote.bad_rows} bad rows: {remote.last_bad_row}"
    if said.paths:
        yield from said.paths.not_probed[:_CLAIMS]
    if said.encryption and said.encryption.waits_for:
        yield f"its WireGuard key is being changed, and waits for {said.encryption.waits_for}"
    if said.datapath:
        for reason, packets in said.datapath.drops.items():
            if packets and reason not in _EXPECTED_DROPS:
                yield f"{packets} packets were dropped: {reason}"
        if said.datapath.fast_path_off:
            yield f"the fast path is off: {said.datapath.fast_path_off}"


def _print(report: Report) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # a pipe has no width: see show.py
    for table in _tables(report):
        if table.row_count:
            console.print(table)
            console.print()
    for line in report.troubles:
        console.print(Text(line, "red"))
    for line in report.warnings:
        console.print(Text(line, "yellow"))
    if not report.troubles:
        console.print(Text("all is well", "green"))


def _tables(report: Report) -> tuple[Table, Table]:
    """The daemons, and the remote clusters."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    daemons = Table.grid(padding=(0, 2))
    remotes = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("REMOTE", "ID", "STATE", "FOR"):
        remotes.add_column(header)
    for header in ("NODES", "SERVICES", "IDENTITIES", "ENDPOINTS", "PATHS", "LOSS", "ROUND TRIP"):
        remotes.add_column(header, justify="right")
    for said in report.statuses():
        ready = Text("ready", "green") if said.ready else Text("not ready", "red")
        daemons.add_row(Text(said.daemon, "bold"), ready, Text(", ".join(facts(said))))
        paths = {one.cluster: one for one in said.paths.clusters} if said.paths else {}
        for remote in said.remotes:
            cells = [*_remote_cells(remote), *path_cells(paths.get(remote.cluster))]
            remotes.add_row(*cells, style=_COLOURS[remote.state])
    return daemons, remotes


def facts(said: DaemonStatus) -> Iterator[str]:
    """What a daemon is and works with."""
    if said.cluster:
        node = f"/{said.node}" if said.node else ""
        yield f"{said.cluster.name}{node} (id {said.cluster.id})"
    yield f"version {said.version}"
    yield f"up {ago(said.uptime)}"
    if said.datapath:
        yield f"datapath {said.datapath.mode}"
        if said.datapath.routing:
            yield f"routing {said.datapath.routing}"
    if said.encryption:
        yield f"encryption {said.encryption.type} ({said.encryption.driver})"
    if said.source:
        yield f"{said.source.objects} objects in {said.source.kind}"
        if said.source.leader:
            yield f"leader {said.source.leader_host}"
    if said.etcd:
        yield f"etcd {' '.join(said.etcd.endpoints)}"
    # A table that is empty is one of a feature that is off, or is told of by what is wrong.
    yield from (f"{table.rows} {name}" for name, table in said.tables.items() if table.rows)


def _remote_cells(remote: Remote) -> list[str]:
    counts: list[Any] = [remote.nodes, remote.services, remote.identities, remote.endpoints]
    number = "-" if remote.id is None else str(remote.id)
    return [remote.cluster, number, remote.state, ago(remote.since), *map(str, counts)]


def path_cells(paths: ClusterPaths | None) -> list[str]:
    """How many ways to a cluster are well, how much is lost, and the round trip."""
    if paths is None or not paths.paths:
        return ["-", "-", "-"]
    trip = "-" if paths.round_trip is None else f"{paths.round_trip * 1000:.1f} ms"
    return [f"{paths.well}/{paths.paths}", f"{paths.loss:.0%}", trip]


def ago(seconds: float) -> str:
    """Seconds as a person says them: 12 s, 3 min, 2 h, 5 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

"""A sandbox at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clustermesh.cli.status import Report
from clustermesh.status import DaemonStatus, RemoteState

from .model import Sandbox


def print_overview(sandbox: Sandbox, reports: Mapping[str, Report]) -> None:
    """A row for each cluster and node; below, what is wrong, a line each."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("WHERE", "STATE", "READS", "FRONTENDS", "ROUTES", "IPCACHE", "PODS"):
        table.add_column(header)
    for cluster in sandbox.members:
        nodes = tuple(node.place for node in cluster.nodes)
        servers = [
            n for n in reports if n.startswith(f"{cluster.name}/") and not n.startswith(nodes)
        ]
        table.add_row(Text(cluster.name, "bold"), _state(reports, servers), f"id {cluster.id}")
        for node in cluster.nodes:
            said = next(reports[node.place].statuses(), None)
            pods = [pod.place for pod in node.pods]
            running = sum(not reports[pod].troubles for pod in pods)
            cells = [_reads(said)] + [
                _rows(said, name) for name in ("frontends", "routes", "ipcache")
            ]
            table.add_row(
                f"  {node.name}", _state(reports, [node.place]), *cells, f"{running}/{len(pods)}"
            )
    console.print(table)
    console.print()
    troubles = list(_lines(reports, "troubles"))
    for line in troubles:
        console.print(Text(line, "red"))
    for line in _lines(reports, "warnings"):
        console.print(Text(line, "yellow"))
    if not troubles:
        console.print(Text("all is well", "green"))


def _state(reports: Mapping[str, Report], names: list[str]) -> Text:
    if any(reports[name].troubles for name in names):
        return Text("not well", "red")
    return Text("well", "green")


def _reads(said: DaemonStatus | None) -> Text:
    """How many of the other clusters it reads."""
    if said is None:
        return Text("-")
    ready = sum(remote.state is RemoteState.READY for remote in said.remotes)
    return Text(f"{ready}/{len(said.remotes)}", "green" if ready == len(said.remotes) else "red")


def _rows(said: DaemonStatus | None, table: str) -> str:
    found = said.tables.get(table) if said else None  # none while the agent is starting
    return "-" if found is None else str(found.rows)


def _lines(reports: Mapping[str, Report], field: str) -> Iterator[str]:
    for part, report in reports.items():
        for line in getattr(report, field):
            yield f"{part}: {line}"

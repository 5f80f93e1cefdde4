from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cyclopts import App, Parameter

from clustermesh.settings import CommaSeparated
from clustermesh.status import DAEMON_STATUS, TABLE_REPLY

from .client import AGENT, AgentAddress, Output, decode, get

app = App(name="connectivity", help="Test whether packets get from cluster to cluster.")

_POLL: Final = 0.5  # seconds
_LEFT_OUT: Final = ("cluster", "node", "age")

Row = Mapping[str, Any]


class Ways(msgspec.Struct, frozen=True):
    """The ways from one node, as its agent sees them."""

    source: str  # CLUSTER/NODE
    rows: Sequence[Row] = ()
    failure: str = ""  # why nothing could be found out

    def is_fresh(self, since: float) -> bool:
        """Whether every way that is probed was looked at in the last so many seconds."""
        return bool(self.failure) or not any(_is_stale(row, since) for row in self.rows)


@app.command(name="test")
def connectivity_test(
    *,
    agent: AgentAddress = AGENT,
    context: CommaSeparated = (),
    namespace: Annotated[str | None, Parameter(name=("--namespace", "-n"))] = None,
    kubeconfig: Path | None = None,
    output: Output = "table",
    timeout: float = 60.0,
) -> int:
    """
    Look at every way to the nodes of other clusters once more. The exit code is 1 if one fails.

    Agents look by themselves every few seconds: this waits until they have done so again, with
    small packets and with the largest, and prints what they found, with the cause of each failure.

    Args:
        agent: Where the agent answers: http://HOST:PORT or unix:PATH.
        context: Contexts of a kubeconfig, with commas or given several times: the agents of all
            nodes of those clusters are asked, and not the one on this machine.
        namespace: With --context: that of the installation; by default it is looked for.
        kubeconfig: With --context: the file; by default what kubectl reads.
        timeout: Seconds to wait for the agents.
    """
    if context:
        from .contexts.connectivity import test_clusters  # noqa: PLC0415 - takes long to import

        found = test_clusters(context, namespace=namespace, kubeconfig=kubeconfig, timeout=timeout)
    else:
        found = [_wait(lambda: _ask(agent), timeout)]
    return report(found, output)


def report(found: Sequence[Ways], output: str) -> int:
    """Print what was found; 0 if all of it is well."""
    troubles = list(_troubles(found))
    if output == "json":
        whole = {"tests": found, "troubles": troubles}
        sys.stdout.buffer.write(msgspec.json.encode(whole) + b"\n")
    else:
        _print(found, troubles)
    return 1 if troubles else 0


def _ask(agent: str) -> Ways:
    said = decode("agent", agent, get("agent", agent, "/status"), DAEMON_STATUS)
    reply = decode("agent", agent, get("agent", agent, "/tables/paths"), TABLE_REPLY)
    cluster = said.cluster.name if said.cluster else ""
    return Ways(f"{cluster}/{said.node}", reply.rows)


def _wait(
    ask: Callable[[], Ways],
    timeout: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Ways:
    """Ask until everything has been looked at since now; what has not been by then says so."""
    began = now()
    while not (ways := ask()).is_fresh(now() - began):
        if now() - began > timeout:
            return given_up(ways, now() - began)
        sleep(_POLL)
    return ways


def given_up(ways: Ways, waited: float) -> Ways:
    """The same, where ways that were not looked at in all the time count as failing."""
    late = {"state": "failing", "failing": f"it was not looked at within {waited:.0f} s"}
    rows = [{**row, **late} if _is_stale(row, waited) else row for row in ways.rows]
    return Ways(ways.source, rows)


def _is_stale(row: Row, since: float) -> bool:
    if row.get("state") == "not probed" or (row.get("failing") and row.get("age") is None):
        return False  # nobody looks at these
    age = row.get("age")
    return age is None or age > since


def _troubles(found: Iterable[Ways]) -> Iterator[str]:
    for ways in found:
        if ways.failure:
            yield f"{ways.source}: {ways.failure}"
        elif not ways.rows:
            yield f"{ways.source}: there is no way to test: it knows no node of another cluster"
        for row in sorted(ways.rows, key=_way):
            if row.get("failing"):
                way = f"{ways.source} to {row['cluster']}/{row['node']} over {row['ip']}"
                yield f"{way}: {row['failing']}"


def _way(row: Row) -> tuple[str, str, str]:
    return row["cluster"], row["node"], row["ip"]


def _print(found: Sequence[Ways], troubles: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.text import Text  # noqa: PLC0415

    from clustermesh.show import tables  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # see show.py
    rows = [_shown(ways.source, row) for ways in found for row in ways.rows]
    table, *_ = tables("connectivity", rows)
    if rows:
        console.print(table)
        console.print()
    for line in troubles:
        console.print(Text(line, "red"))
    if not troubles:
        console.print(Text("all is well", "green"))


def _shown(source: str, row: Row) -> Row:
    rest = {name: value for name, value in row.items() if name not in _LEFT_OUT}
    return {"from": source, "to": f"{row['cluster']}/{row['node']}", **rest}

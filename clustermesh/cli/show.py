from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter

from clustermesh.status import TABLE_REPLY

from .client import AGENT, AgentAddress, Output, decode, get

app = App(name="show", help="Print what the agent knows, or what the kernel holds.")

TableName = Literal[
    "services",
    "frontends",
    "nodes",
    "routes",
    "peers",
    "identities",
    "endpoints",
    "ipcache",
    "cidrs",
    "pods",
    "devices",
    "paths",
]


@app.default
def show(table: TableName, /, *, output: Output = "table", agent: AgentAddress = AGENT) -> None:
    """
    Print a table of the agent, and what is wrong with its rows.

    services, nodes, identities and endpoints are what the clusters say; frontends, routes, peers,
    cidrs and ipcache are what the agent makes of it; paths is how packets get to the other nodes.

    Args:
        table: The table to print.
        agent: Where the agent answers: http://HOST:PORT or unix:PATH.
    """
    body = get("agent", agent, f"/tables/{table}")
    if output == "json":
        sys.stdout.buffer.write(body + b"\n")
        return
    reply = decode("agent", agent, body, TABLE_REPLY)
    from clustermesh.show import tables  # noqa: PLC0415 - rich is not needed for JSON

    _print(tables(table, reply.rows, reply.failures))


@app.command
def maps(
    *,
    bpffs: Annotated[Path, Parameter(env_var="CLUSTERMESH_BPFFS")] = Path("/sys/fs/bpf"),
    output: Output = "table",
) -> None:
    """
    Print the pinned BPF maps: what the kernel holds, whatever the agent says.

    Args:
        bpffs: The BPF filesystem that the agent pins in.
    """
    from .maps import read_maps  # noqa: PLC0415 - loads libbpf

    held = read_maps(bpffs)
    if output == "json":
        sys.stdout.buffer.write(msgspec.json.encode(held) + b"\n")
        return
    from clustermesh.show import tables  # noqa: PLC0415

    for name, rows in held.items():
        print(f"{name}:")
        _print(tables(name, rows))
        print()


def _print(renderables: Iterable[object]) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # a pipe has no width: never fold what grep shall find
    for renderable in renderables:
        console.print(renderable, highlight=False)

"""
Read the maps in use on a node without its agent, by the pins in its bpffs.

`clustermesh show maps` holds them against what was wanted. Everything is opened read-only.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

from agent.kernel import contents, pins
from agent.kernel.bpf import Map
from agent.kernel.contents import FrontendRow, Traffic
from agent.kernel.layouts import Direction, DropReason
from agent.rows import IpcacheEntry, Pod
from clustermesh.errors import UserError
from clustermesh.model import IPAddress, IPNetwork

_TRIES: Final = 3
"""An agent may write while we read: what looks half-applied is read again before it is shown."""


def frontends(bpffs: Path) -> list[FrontendRow]:
    """
    The frontends and their backends, in no order. A None among the backends is a real fault.

    Raises:
        UserError: no agent has set up a data path with this bpffs.
    """
    with closing(_open(bpffs, "frontends")) as keys, closing(_open(bpffs, "backends")) as slots:
        for _ in range(_TRIES):
            rows, _orphans = contents.read_frontends(keys, slots)
            if all(None not in row.backends for row in rows):
                break
        return rows


def ipcache(bpffs: Path) -> dict[IPNetwork, IpcacheEntry]:
    """Who has which prefix. Raises like `frontends`."""
    with closing(_open(bpffs, "ipcache")) as map_:
        return contents.read_ipcache(map_)


def drops(bpffs: Path) -> dict[DropReason, int]:
    """Dropped packets and refused calls. Raises like `frontends`."""
    with closing(_open(bpffs, "drops")) as map_:
        return contents.read_drops(map_)


def counters(bpffs: Path) -> dict[Direction, Traffic]:
    """What the tunnel carried. Raises like `frontends`."""
    with closing(_open(bpffs, "counters")) as map_:
        return contents.read_counters(map_)


def pods(bpffs: Path) -> dict[IPAddress, Pod]:
    """The pods of the node that are on the fast path. Raises like `frontends`."""
    with closing(_open(bpffs, "pods")) as map_:
        return contents.read_pods(map_)


def fast_counters(bpffs: Path) -> dict[Direction, Traffic]:
    """What the fast path carried. Raises like `frontends`."""
    with closing(_open(bpffs, "fast_counters")) as map_:
        return contents.read_counters(map_)


def _open(bpffs: Path, name: str) -> Map:
    directory = pins.current(bpffs)
    if directory is None:
        raise UserError(f"{bpffs} holds no maps of clustermesh", hint="did the agent start?")
    try:
        return Map.pinned(directory / name, read_only=True)
    except PermissionError as error:
        raise UserError(f"not allowed to read {directory / name}", hint="run as root") from error

"""The pinned BPF maps as rows for JSON. Imports the kernel code of the agent, and so libbpf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent.kernel import inspect
from agent.kernel.contents import FrontendRow, Traffic
from agent.kernel.layouts import Direction, DropReason
from agent.rows import IpcacheEntry
from clustermesh.model import IPNetwork

Rows = list[dict[str, Any]]


def read_maps(bpffs: Path) -> dict[str, Rows]:
    """
    What the maps pinned in `bpffs` hold, by map.

    Raises:
        UserError: there are none, or they may not be read.
    """
    return {
        "frontends": frontends(inspect.frontends(bpffs)),
        "ipcache": ipcache(inspect.ipcache(bpffs)),
        "drops": drops(inspect.drops(bpffs)),
        "counters": counters(inspect.counters(bpffs)),
    }


def frontends(rows: Iterable[FrontendRow]) -> Rows:
    """Backends are listed by slot; one that is missing in the kernel is null, and a conflict."""
    found = []
    for row in rows:
        shown: dict[str, Any] = {
            "address": str(row.address),
            "id": row.id,
            "generation": row.generation,
            "backends": [backend and str(backend) for backend in row.backends],
        }
        missing = [str(slot) for slot, backend in enumerate(row.backends) if backend is None]
        if missing:
            shown["conflict"] = f"nothing in slot {', '.join(missing)}"
        found.append(shown)
    return found


def ipcache(entries: Mapping[IPNetwork, IpcacheEntry]) -> Rows:
    """Prefixes, and who has them."""
    return [
        {
            "prefix": str(prefix),
            "identity": entry.identity,
            "cluster_id": entry.cluster_id,
            "node_ip": None if entry.node_ip is None else str(entry.node_ip),
        }
        for prefix, entry in entries.items()
    ]


def drops(packets: Mapping[DropReason, int]) -> Rows:
    """Dropped packets and refused calls, by reason."""
    return [{"reason": reason.name, "packets": number} for reason, number in packets.items()]


def counters(traffic: Mapping[Direction, Traffic]) -> Rows:
    """What the tunnel carried, by direction."""
    return [{"direction": way.name.lower(), **sums._asdict()} for way, sums in traffic.items()]

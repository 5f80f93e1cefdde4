"""What is in the maps, as rows: the one place that reads them, for the targets and for `show`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from agent.kernel import layouts
from agent.kernel.bpf import Map
from agent.kernel.layouts import Direction, DropReason
from agent.rows import IpcacheEntry, Pod
from clustermesh.model import IPAddress, IPNetwork, L4Address, Protocol


class FrontendRow(NamedTuple):
    """A frontend as the kernel has it, with its backends by slot; None for a slot without one."""

    address: L4Address
    id: int
    generation: int
    backends: tuple[L4Address | None, ...]


class Slot(NamedTuple):
    """The key of a backend."""

    frontend: int
    generation: int
    slot: int


class Traffic(NamedTuple):
    """What went through the tunnel, over all CPUs."""

    packets: int
    bytes: int


def read_frontends(frontends: Map, backends: Map) -> tuple[list[FrontendRow], list[Slot]]:
    """
    Every frontend, and the slots in the map of backends that belong to none.

    The two maps are read one after the other. If somebody writes meanwhile, a changed frontend
    lacks slots, and the slots of the other generation seem to belong to none.
    """
    keys, values = frontends.read()
    addresses = [layouts.unpack_frontend_key(*f) for f in layouts.FRONTEND_KEY.iter_unpack(keys)]
    states = list(layouts.FRONTEND.iter_unpack(values))
    protocols = {
        (id_, generation): address.protocol
        for address, (id_, generation, _, _) in zip(addresses, states, strict=True)
    }
    keys, values = backends.read()
    slots: dict[Slot, L4Address] = {}
    orphans: list[Slot] = []
    for slot, (ip, port) in zip(
        map(Slot._make, layouts.BACKEND_KEY.iter_unpack(keys)),
        layouts.ENDPOINT.iter_unpack(values),
        strict=True,
    ):
        protocol = protocols.get(slot[:2])
        if protocol is None:
            orphans.append(slot)
        else:
            slots[slot] = layouts.unpack_endpoint(ip, port, protocol)
    rows = []
    for address, (id_, generation, count, near) in zip(addresses, states, strict=True):
        first = _near(near, count, address.protocol)
        rest = (slots.pop(Slot(id_, generation, n), None) for n in range(layouts.NEAR, count))
        rows.append(FrontendRow(address, id_, generation, (*first, *rest)))
    return rows, [*orphans, *slots]  # what is left lies outside of its frontend's slots


def _near(raw: bytes, count: int, protocol: Protocol) -> Iterator[L4Address]:
    used = raw[: min(count, layouts.NEAR) * layouts.ENDPOINT.size]
    for ip, port in layouts.ENDPOINT.iter_unpack(used):
        yield layouts.unpack_endpoint(ip, port, protocol)


def read_ipcache(ipcache: Map) -> dict[IPNetwork, IpcacheEntry]:
    """Every prefix, and who it is."""
    keys, values = ipcache.read()
    return {
        layouts.unpack_ipcache_key(*key): layouts.unpack_ipcache_entry(*value)
        for key, value in zip(
            layouts.IPCACHE_KEY.iter_unpack(keys),
            layouts.IPCACHE_ENTRY.iter_unpack(values),
            strict=True,
        )
    }


def read_pods(pods: Map) -> dict[IPAddress, Pod]:
    """The pods that the fast path knows, by address."""
    keys, values = pods.read()
    return {
        layouts.unpack_ip(key): layouts.unpack_pod(*value)
        for (key,), value in zip(
            layouts.POD_KEY.iter_unpack(keys), layouts.POD.iter_unpack(values), strict=True
        )
    }


def read_drops(drops: Map) -> dict[DropReason, int]:
    """Packets and calls by reason, over all CPUs; also the reasons that never occurred."""
    return {
        reason: sum(count for (count,) in struct.iter_unpack("=Q", _cpus(drops, reason)))
        for reason in DropReason
    }


def read_counters(counters: Map) -> dict[Direction, Traffic]:
    """Packets and bytes by direction, over all CPUs."""
    found = {}
    for direction in Direction:
        packets, sizes = zip(*layouts.TRAFFIC.iter_unpack(_cpus(counters, direction)), strict=True)
        found[direction] = Traffic(sum(packets), sum(sizes))
    return found


def _cpus(map_: Map, index: int) -> bytes:
    values = map_.get(struct.pack("=I", index))
    if values is None:
        raise IndexError(f"{map_.name} has no row {index}")
    return values

"""Who has which address, in the map `ipcache`: what the tunnel sends by, and admits by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping

from agent.kernel import contents, layouts
from agent.kernel.datapath import Datapath
from agent.rows import IpcacheEntry
from clustermesh.model import IPNetwork


class IpcacheTarget:
    """A `Target` of entries by prefix."""

    def __init__(self, datapath: Datapath) -> None:
        """Be the only writer of the datapath's ipcache."""
        self._ipcache = datapath.ipcache

    async def actual(self) -> Mapping[IPNetwork, IpcacheEntry]:
        """What the kernel has."""
        return await asyncio.to_thread(contents.read_ipcache, self._ipcache)

    async def apply(
        self, puts: Mapping[IPNetwork, IpcacheEntry], deletes: Collection[IPNetwork]
    ) -> Mapping[IPNetwork, OSError]:
        """Write each row. Fails per row: ENOSPC when the map is full."""
        return await asyncio.to_thread(self._apply, puts, deletes)

    async def drift(self) -> AsyncIterator[Collection[IPNetwork] | None]:
        """End at once: the kernel does not tell who writes to a map."""
        return
        yield  # makes this a generator

    def _apply(
        self, puts: Mapping[IPNetwork, IpcacheEntry], deletes: Collection[IPNetwork]
    ) -> dict[IPNetwork, OSError]:
        gone, new = list(deletes), list(puts)
        errors = self._ipcache.delete(b"".join(map(layouts.pack_ipcache_key, gone)))
        failed = {gone[index]: error for index, error in errors.items()}
        errors = self._ipcache.update(
            b"".join(map(layouts.pack_ipcache_key, new)),
            b"".join(map(layouts.pack_ipcache_entry, puts.values())),
        )
        return failed | {new[index]: error for index, error in errors.items()}

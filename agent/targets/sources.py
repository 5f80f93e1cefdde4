"""Prefixes of other clusters, with which connections keep their source addresses past any CNI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Literal, TypeAlias

from agent.kernel.nftables import Nftables
from clustermesh.model import IPNetwork

Kept: TypeAlias = Literal[True]
"""All that there is to say of a prefix."""


class SourceTarget:
    """Our table in nftables. It stays when the agent stops: connections outlive it."""

    def __init__(self, nftables: Nftables) -> None:
        self._nftables = nftables

    async def actual(self) -> Mapping[IPNetwork, Kept]:
        """The prefixes that are there. Has the table made ready first."""
        return dict.fromkeys(await self._nftables.prepare(), True)

    async def apply(
        self, puts: Mapping[IPNetwork, Kept], deletes: Collection[IPNetwork]
    ) -> Mapping[IPNetwork, OSError]:
        """Add and delete prefixes, all of them or none."""
        await self._nftables.apply(puts.keys(), deletes)
        return {}

    async def drift(self) -> AsyncIterator[None]:
        """None each time that somebody else has changed our table, or flushed all that there is."""
        async for _ in self._nftables.changes():
            yield None

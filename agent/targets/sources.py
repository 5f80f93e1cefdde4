"""What is of other clusters: connections with it keep their source addresses past any CNI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from typing import Final, Literal, TypeAlias

from agent.kernel.nftables import Nftables
from agent.rows import RouteKey
from clustermesh.model import IPNetwork

Kept: TypeAlias = Literal[True]
"""All that there is to say of it."""

_PATIENCE: Final = 1.0  # seconds: many times what a change takes


class SourceTarget:
    """Our table in nftables. It stays when the agent stops: connections outlive it."""

    def __init__(self, nftables: Nftables, pods: Callable[[], Collection[IPNetwork]]) -> None:
        """
        Args:
            pods: the networks of this node's pods. Compare anew when they change.
        """
        self._nftables = nftables
        self._pods = pods
        self._there: set[RouteKey] = set()
        self._works = False  # as far as the last attempt tells
        self._tried = asyncio.Event()

    async def actual(self) -> Mapping[RouteKey, Kept]:
        """What is there. Has the table made ready first."""
        with self._trying():
            self._there = set(await self._nftables.prepare(self._pods()))
        return dict.fromkeys(self._there, True)

    async def apply(
        self, puts: Mapping[RouteKey, Kept], deletes: Collection[RouteKey]
    ) -> Mapping[RouteKey, OSError]:
        """Add and delete, all of them or none."""
        with self._trying():
            await self._nftables.apply(puts.keys(), deletes)
            self._there |= puts.keys()
            self._there.difference_update(deletes)
        return {}

    async def drift(self) -> AsyncIterator[None]:
        """None each time that somebody else has changed our table, or flushed all that there is."""
        async for _ in self._nftables.changes():
            yield None

    async def wait_for(self, keys: Collection[RouteKey]) -> None:
        """
        Wait until `keys`, which somebody else is about to put here, are there.

        For a second at most, and not at all where nothing can be put here: who waits has something
        to do that is better done late than never.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while self._works and not self._there.issuperset(keys):
                    self._tried.clear()
                    await self._tried.wait()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._works = False
            raise
        else:
            self._works = True
        finally:
            self._tried.set()

"""Prefixes of other clusters, with which connections keep their source addresses past any CNI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Final, Literal, TypeAlias

from agent.kernel.nftables import Nftables
from clustermesh.model import IPNetwork

Kept: TypeAlias = Literal[True]
"""All that there is to say of a prefix."""

_PATIENCE: Final = 1.0  # seconds: many times what a change takes


class SourceTarget:
    """Our table in nftables. It stays when the agent stops: connections outlive it."""

    def __init__(self, nftables: Nftables) -> None:
        self._nftables = nftables
        self._there: set[IPNetwork] = set()
        self._works = False  # as far as the last attempt tells
        self._tried = asyncio.Event()

    async def actual(self) -> Mapping[IPNetwork, Kept]:
        """The prefixes that are there. Has the table made ready first."""
        with self._trying():
            self._there = set(await self._nftables.prepare())
        return dict.fromkeys(self._there, True)

    async def apply(
        self, puts: Mapping[IPNetwork, Kept], deletes: Collection[IPNetwork]
    ) -> Mapping[IPNetwork, OSError]:
        """Add and delete prefixes, all of them or none."""
        with self._trying():
            await self._nftables.apply(puts.keys(), deletes)
            self._there |= puts.keys()
            self._there.difference_update(deletes)
        return {}

    async def drift(self) -> AsyncIterator[None]:
        """None each time that somebody else has changed our table, or flushed all that there is."""
        async for _ in self._nftables.changes():
            yield None

    async def wait_for(self, prefixes: Collection[IPNetwork]) -> None:
        """
        Wait until `prefixes`, which somebody else is about to put here, are there.

        For a second at most, and not at all where nothing can be put here: who waits has something
        to do that is better done late than never.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while self._works and not self._there.issuperset(prefixes):
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

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from .table import Writer

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Put(Generic[K, V]):
    """A row is there, or has changed."""

    key: K
    value: V


@dataclass(frozen=True, slots=True)
class Delete(Generic[K]):
    """A row is gone."""

    key: K


@dataclass(frozen=True, slots=True)
class Listing:
    """A full listing begins, for the first time or after a reconnect."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The listing is complete; changes follow."""


Event: TypeAlias = Put[K, V] | Delete[K] | Listing | Listed

Source: TypeAlias = AsyncIterator[Sequence[Event[K, V]]]
"""Batches of events, in order. A source deals with lost connections itself and never raises
for them: it lists again."""


async def replicate(source: Source[K, V], writer: Writer[K, V]) -> None:
    """Make the writer's rows follow `source` until it ends; then leave them be."""
    async for batch in source:
        for event in batch:
            match event:
                case Put(key, value):
                    writer.put(key, value)
                case Delete(key):
                    writer.delete(key)
                case Listing():
                    writer.listing()
                case Listed():
                    writer.list_done()
        await asyncio.sleep(0)  # a source with much to say must not starve the others

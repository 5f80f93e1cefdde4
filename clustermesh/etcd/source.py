from __future__ import annotations

import asyncio
import gc
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager
from typing import Final, Generic, TypeVar

from clustermesh.backoff import Backoff
from clustermesh.errors import BadRowError
from clustermesh.health import Health
from clustermesh.state import Delete, Event, Listed, Listing, Put

from . import rpc_pb2 as rpc
from .client import Etcd, Revision
from .errors import EtcdError, HistoryLostError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

_CHUNK: Final = 500
"""Rows decoded before other tasks get a turn: a few milliseconds."""


async def etcd_source(
    etcd: Etcd,
    prefix: str,
    decode: Callable[[bytes, bytes], tuple[K, V]],
    decode_key: Callable[[bytes], K],
    *,
    health: Health,
    before_listing: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Sequence[Event[K, V]]]:
    """
    Everything below `prefix`, and every change of it, forever.

    A lost connection is resumed where it broke, so nothing is missed and nothing listed again. What
    has been compacted away meanwhile, or a server whose data directory was replaced, makes for a
    new listing, which drops nothing before it is complete.

    A row that its writer replaced with a bad one is deleted, just as a new reader would not see
    it: what the writer said before is no longer true, and two readers must not differ.

    Args:
        prefix: with its trailing `/`, or `cluster1` would also read `cluster10`.
        decode: of a key and its value. Raises BadRowError: the row is skipped and reported.
        decode_key: what `decode` says of a key. Raises BadRowError: the key is none of ours.
        health: is kept up to date.
        before_listing: waits until what is there is everything: a server that was replaced is
            empty at first, and its listing would sweep away all rows. May raise EtcdError.
    """
    if not prefix.endswith("/"):
        raise ValueError(f"{prefix!r} has no trailing /")
    reader = _Reader(etcd, prefix.encode(), decode, decode_key, health=health)
    backoff = Backoff()
    while True:
        try:
            if reader.after is None:
                if before_listing is not None:
                    await before_listing()
                async with aclosing(reader.listing()) as batches:
                    async for batch in batches:
                        yield batch
            async with aclosing(reader.changes()) as batches:
                async for batch in batches:
                    backoff.reset()
                    if batch:
                        yield batch
        except HistoryLostError as error:
            health.down(error)
            reader.after = None
        except EtcdError as error:
            health.down(error)
        await asyncio.sleep(backoff.next())


class _Reader(Generic[K, V]):
    """Turns what etcd sends into events, and remembers how far it got."""

    def __init__(
        self,
        etcd: Etcd,
        prefix: bytes,
        decode: Callable[[bytes, bytes], tuple[K, V]],
        decode_key: Callable[[bytes], K],
        *,
        health: Health,
    ) -> None:
        self.after: Revision | None = None  # everything until then has been told
        self._etcd = etcd
        self._prefix = prefix
        self._decode = decode
        self._decode_key = decode_key
        self._health = health

    async def listing(self) -> AsyncGenerator[list[Event[K, V]], None]:
        self._health.listings += 1
        self._health.skipped.clear()
        yield [Listing()]
        async for page in self._etcd.range(self._prefix):
            for rows in _chunks(page.rows):
                yield self._listed(rows)
            at = page.at
        self.after = at
        yield [Listed()]

    async def changes(self) -> AsyncGenerator[list[Event[K, V]], None]:
        """Begins with an empty batch, when the server has accepted."""
        assert self.after is not None, "there was a listing"
        async with aclosing(self._etcd.watch(self._prefix, self.after)) as batches:
            async for events in batches:
                self._health.up()
                if not events:
                    yield []
                for chunk in _chunks(events):
                    yield self._changed(chunk)
                if events:
                    # The header's revision may be ahead of the events that were sent.
                    self.after = self.after._replace(number=events[-1].kv.mod_revision)

    def _listed(self, rows: Sequence[rpc.KeyValue]) -> list[Event[K, V]]:
        events: list[Event[K, V]] = []
        with _no_garbage_collection():
            for row in rows:
                event = self._put(row)
                if event is not None:
                    events.append(event)
        return events

    def _changed(self, changes: Sequence[rpc.Event]) -> list[Event[K, V]]:
        events: list[Event[K, V]] = []
        for change in changes:
            event: Event[K, V] | None = None
            if change.type == rpc.Event.PUT:
                event = self._put(change.kv)
            else:
                self._health.rows += 1
                self._health.good(change.kv.key)
            event = event or self._delete(change.kv.key)
            if event is not None:
                events.append(event)
        return events

    def _put(self, row: rpc.KeyValue) -> Put[K, V] | None:
        self._health.rows += 1
        self._health.bytes_received += len(row.value)
        try:
            key, value = self._decode(row.key, row.value)
        except BadRowError as error:
            self._health.bad(row.key, error)
            return None
        self._health.good(row.key)
        return Put(key, value)

    def _delete(self, key: bytes) -> Delete[K] | None:
        try:
            return Delete(self._decode_key(key))
        except BadRowError:  # said when it was put; no row ever came of it
            return None


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A listing makes only objects that stay: looking for garbage among them takes 4/5 of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Iterable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec

from clustermesh.backoff import Backoff
from clustermesh.errors import BadRowError
from clustermesh.health import Health
from clustermesh.model import ObjectName
from clustermesh.state import Delete, Event, Listed, Listing, Put

from .client import Change, Kube, Resource
from .errors import HistoryLostError, KubeError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


async def kube_source(
    kube: Kube,
    resource: Resource,
    decode: Callable[[msgspec.Raw], tuple[K, V]],
    decode_key: Callable[[ObjectName], K],
    *,
    health: Health,
) -> AsyncIterator[Sequence[Event[K, V]]]:
    """
    Every object of a kind, and every change of it, forever.

    A watch that ends or is cut is resumed where it was. When the server has forgotten what was
    there (after a compaction, mostly), everything is listed again, which drops nothing before it is
    complete. A kind that the server does not know, or does not let us see, is a failure as any
    other: what was read of it stays.

    An object that was replaced by one that makes no sense is deleted, just as a new reader would
    not see it: two readers must not differ.

    Args:
        decode: of an object. Raises BadRowError or msgspec.ValidationError: it is skipped and
            reported.
        decode_key: what `decode` says of a name. Raises BadRowError: the object is none of ours.
        health: is kept up to date.
    """
    reader = _Reader(kube, resource, decode, decode_key, health=health)
    backoff = Backoff(most=5.0)
    while True:
        wait = 0.0
        try:
            if reader.after is None:
                async with aclosing(reader.listing()) as batches:
                    async for batch in batches:
                        yield batch
            async with aclosing(reader.changes()) as batches:
                async for batch in batches:
                    if batch:
                        yield batch
                    if reader.is_moving:
                        backoff.reset()
        except HistoryLostError as error:
            health.down(error)
            reader.after = None
        except msgspec.DecodeError as error:
            health.down(KubeError(f"{resource.plural}: the objects make no sense: {error}"))
        except KubeError as error:
            health.down(error)
            wait = error.retry_after * random.uniform(1.0, 1.5)
        await asyncio.sleep(max(wait, backoff.next()))


class _Metadata(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct, frozen=True, gc=False):
    """What every object says of itself, a bad one too."""

    metadata: _Metadata


class _Reader(Generic[K, V]):
    """Turns what the server sends into events, and remembers how far it got."""

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        decode: Callable[[msgspec.Raw], tuple[K, V]],
        decode_key: Callable[[ObjectName], K],
        *,
        health: Health,
    ) -> None:
        self.after: str | None = None  # everything until then has been told
        self.is_moving = False  # the last watch has said something
        self._kube = kube
        self._resource = resource
        self._decode = decode
        self._decode_key = decode_key
        self._health = health
        self._objects = msgspec.json.Decoder(_Object)

    async def listing(self) -> AsyncGenerator[list[Event[K, V]], None]:
        self._health.listings += 1
        self._health.skipped.clear()
        yield [Listing()]
        async with aclosing(self._kube.list(self._resource)) as pages:
            async for page in pages:
                yield list(self._listed(page.items))
                version = page.version
        self.after = version
        yield [Listed()]

    async def changes(self) -> AsyncGenerator[list[Event[K, V]], None]:
        assert self.after is not None, "there was a listing"
        self.is_moving = False
        async with aclosing(self._kube.watch(self._resource, self.after)) as batches:
            async for changes in batches:
                self._health.up()
                self.is_moving = bool(changes)
                yield [event for change in changes for event in self._changed(change)]

    def _listed(self, items: Iterable[msgspec.Raw]) -> Iterable[Event[K, V]]:
        for item in items:
            put = self._put(item, self._objects.decode(item).metadata)
            if put is not None:
                yield put

    def _changed(self, change: Change) -> Iterable[Event[K, V]]:
        metadata = self._objects.decode(change.object).metadata
        event: Event[K, V] | None = None
        if change.type in {"ADDED", "MODIFIED"}:
            event = self._put(change.object, metadata) or self._delete(metadata)
        elif change.type == "DELETED":
            self._health.rows += 1
            self._health.good(_name(metadata))
            event = self._delete(metadata)
        self.after = metadata.resource_version or self.after
        if event is not None:
            yield event

    def _put(self, item: msgspec.Raw, metadata: _Metadata) -> Put[K, V] | None:
        self._health.rows += 1
        self._health.bytes_received += memoryview(item).nbytes
        try:
            key, value = self._decode(item)
        except (BadRowError, msgspec.ValidationError) as error:
            self._health.bad(_name(metadata), BadRowError(str(error)))
            return None
        self._health.good(_name(metadata))
        return Put(key, value)

    def _delete(self, metadata: _Metadata) -> Delete[K] | None:
        try:
            return Delete(self._decode_key(ObjectName(metadata.namespace, metadata.name)))
        except BadRowError:  # said when it was put; no row ever came of it
            return None


def _name(metadata: _Metadata) -> bytes:
    parts = filter(None, (metadata.namespace, metadata.name))
    return "/".join(parts).encode()

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Final, Generic, NamedTuple, TypeVar

from clustermesh.backoff import Backoff
from clustermesh.errors import BadRowError

from . import rpc_pb2 as rpc
from .client import Etcd, Outcome, Revision
from .errors import DeniedError, EtcdError, HistoryLostError, LeaseLostError, UnreachableError
from .lease import Leases
from .txn import Write

K = TypeVar("K", bound=Hashable)

log = logging.getLogger(__name__)

_MISPLACED: Final = b""
"""Shown as the value of a key that has a lease and must not, or the other way round."""


class _Known(NamedTuple):
    """
    What a key was when it last changed, as far as we have heard.

    One that is gone (without a value) is remembered too, until the next full look, so that the late
    news of its earlier life are known for what they are.
    """

    value: bytes | None
    lease: int
    revision: int


class EtcdTarget(Generic[K]):
    """
    The keys below one prefix of an etcd, as a place for rows that are already encoded.

    What is right is not written again: even an identical put moves the revision, and would make
    every agent of every cluster look at it.
    """

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        encode: Callable[[K], bytes],
        decode: Callable[[bytes], K],
        leases: Leases | None = None,
    ) -> None:
        """
        Args:
            prefix: with its trailing `/`.
            encode: the whole etcd key of a row.
            decode: the other way; raises BadRowError for a key that is not ours, which is left be.
            leases: what the keys hang on; None for keys that stay. Keys of an earlier process are
                taken over with their leases.
        """
        if not prefix.endswith("/"):
            raise ValueError(f"{prefix!r} has no trailing /")
        self._etcd = etcd
        self._prefix = prefix.encode()
        self._encode = encode
        self._decode = decode
        self._leases = leases
        self._known: dict[bytes, _Known] = {}
        self._pending: dict[bytes, Write] = {}  # sent, and not answered yet
        self._at: Revision | None = None  # of the last full look
        self._looked = asyncio.Event()

    async def actual(self) -> Mapping[K, bytes]:
        """List what is there, and take over the leases that it hangs on."""
        rows: dict[K, bytes] = {}
        known: dict[bytes, _Known] = {}
        async for page in self._etcd.range(self._prefix):
            for row in page.rows:
                try:
                    key = self._decode(row.key)
                except BadRowError:
                    continue
                known[row.key] = _Known(row.value, row.lease, row.mod_revision)
                rows[key] = row.value if self._is_well_placed(row.lease) else _MISPLACED
                if self._leases and row.lease:
                    self._leases.adopt(row.key, row.lease)
            at = page.at
            await asyncio.sleep(0)
        if self._at and self._at.cluster == at.cluster and self._at.number <= at.number:
            # What the watch has told meanwhile is newer than the listing.
            known |= {key: row for key, row in self._known.items() if row.revision > at.number}
        self._known, self._at = known, at
        self._looked.set()
        if self._leases:
            await self._leases.renew_adopted()
        return rows

    async def apply(self, puts: Mapping[K, bytes], deletes: Collection[K]) -> Mapping[K, OSError]:
        """
        Write what differs from what is there. Returns what etcd refuses, by key.

        Raises:
            UnreachableError: etcd is gone, perhaps in the middle of it.
            DeniedError: we may not write here.
            LeaseLostError: leases are lost as fast as they are had.
            HistoryLostError: it is another etcd now: look at it first.
        """
        if self._at is None:
            await self.actual()
        names = {self._encode(key): key for key in (*puts, *deletes)}
        values: dict[bytes, bytes | None] = {self._encode(key): puts[key] for key in puts}
        values |= {self._encode(key): None for key in deletes}
        outcomes = await self._write({k: v for k, v in values.items() if not self._is_right(k, v)})
        if self._leases and any(isinstance(o.error, LeaseLostError) for o in outcomes):
            await self._leases.renew()  # finds out which ones
            outcomes = await self._write(_refused(outcomes))
            for outcome in outcomes:
                if isinstance(outcome.error, LeaseLostError):
                    raise outcome.error
        if any(o.error and len(o.writes) > 1 for o in outcomes):
            # One bad row must not keep the others of its transaction away.
            alone = [{key: value} for key, value in _refused(outcomes).items()]
            outcomes = [outcome for one in alone for outcome in await self._write(one)]
        return {names[write.key]: o.error for o in outcomes if o.error for write in o.writes}

    async def drift(self) -> AsyncIterator[Collection[K] | None]:
        """Yield what others have changed; None each time that etcd is back after it was gone."""
        backoff = Backoff(most=2.0)  # it is our own etcd, and what it lost, all peers lost
        was_gone = False
        while True:
            try:
                await self._etcd.get(self._prefix)
                if was_gone:
                    was_gone = False
                    yield None
                await self._looked.wait()
                assert self._at is not None, "we have looked"
                async with aclosing(self._etcd.watch(self._prefix, self._at)) as changes:
                    async for events in changes:
                        backoff.reset()
                        keys = self._note(events)
                        if keys:
                            yield keys
            except EtcdError as error:
                if not was_gone:
                    log.warning(
                        "%s: what others change is not seen: %s", self._prefix.decode(), error
                    )
                was_gone = True
                self._looked.clear()
                if isinstance(error, HistoryLostError):
                    self._forget()
                await asyncio.sleep(backoff.next())

    async def _write(self, values: Mapping[bytes, bytes | None]) -> list[Outcome]:
        puts = [key for key, value in values.items() if value is not None]
        leases = await self._leases.assign(puts) if self._leases else {}
        writes = [Write(key, value, leases.get(key, 0)) for key, value in values.items()]
        self._pending |= {write.key: write for write in writes}
        try:
            outcomes = await self._etcd.apply(writes)
        finally:
            for write in writes:
                self._pending.pop(write.key, None)
        for outcome in outcomes:
            if outcome.at is not None:
                self._done(outcome.writes, outcome.at)
        for outcome in outcomes:
            if isinstance(outcome.error, UnreachableError | DeniedError):
                raise outcome.error
        return list(outcomes)

    def _done(self, writes: Iterable[Write], at: Revision) -> None:
        if self._at is None or at.cluster != self._at.cluster:
            self._forget()
            raise HistoryLostError(f"{self._etcd.endpoint}: the server was replaced by another")
        for write in writes:
            known = self._known.get(write.key)
            if known is None or known.revision < at.number:
                self._known[write.key] = _Known(write.value, write.lease, at.number)
            if write.value is None and self._leases:
                self._leases.release(write.key)

    def _note(self, events: Iterable[rpc.Event]) -> set[K]:
        """Remember what has happened; return the keys that somebody else has changed."""
        changed: set[K] = set()
        for event in events:
            row = event.kv
            value = row.value if event.type == rpc.Event.PUT else None
            before = self._known.get(row.key)
            if before and row.mod_revision <= before.revision:
                continue  # our own write, mostly
            if self._at is None or row.mod_revision <= self._at.number:
                continue  # the last full look has seen it
            pending = self._pending.get(row.key)
            is_ours = pending is not None and pending.value == value
            is_placed = value is None or self._is_well_placed(row.lease)
            is_same = is_placed and self._is_right(row.key, value)
            self._known[row.key] = _Known(value, row.lease, row.mod_revision)
            if not is_ours and not is_same:
                with suppress(BadRowError):
                    changed.add(self._decode(row.key))
        return changed

    def _forget(self) -> None:
        self._at = None
        self._looked.clear()

    def _is_right(self, key: bytes, value: bytes | None) -> bool:
        known = self._known.get(key)
        if known is None or known.value is None:
            return value is None
        return known.value == value and self._is_well_placed(known.lease)

    def _is_well_placed(self, lease: int) -> bool:
        return bool(lease) == (self._leases is not None)


def _refused(outcomes: Iterable[Outcome]) -> dict[bytes, bytes | None]:
    return {write.key: write.value for o in outcomes if o.error for write in o.writes}

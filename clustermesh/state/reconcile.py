from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from .table import Table, Watch

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

log = logging.getLogger(__name__)

_CHUNK: Final = 4096
"""Rows given to a target at once: enough for its batching to pay, few enough to stay responsive."""


class Target(Protocol[K, V]):
    """
    A place in the world that holds rows: a BPF map, a route table, an etcd prefix.

    Every method may raise OSError when the place as a whole cannot be reached; the reconciler
    tries again later.
    """

    async def actual(self) -> Mapping[K, V]:
        """The rows that are there now and that are ours to change."""

    async def apply(self, puts: Mapping[K, V], deletes: Collection[K]) -> Mapping[K, OSError]:
        """
        Make the rows be there, or gone, and return what failed, by key.

        Idempotent: rows are given again after a failure, and an absent row may be deleted.
        """

    def drift(self) -> AsyncIterator[Collection[K] | None]:
        """
        Keys that somebody else may have changed, as it happens; None when it could be any.

        Own writes are not reported. May end at once if the place cannot tell.
        """


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row is not in its place, and when that is tried again."""

    error: OSError
    attempts: int
    retry_at: float  # event-loop time, seconds


class Reconciler(Generic[K, V, T]):
    """
    Make `target` equal to `table`, and keep it so. The one place where writing is retried.

    A row that the table once had and lost is deleted at once. A row that was there before us, and
    that the table does not have, is deleted only when the table is ready: a half-read table must
    never take traffic away.
    """

    def __init__(
        self,
        table: Table[K, V],
        target: Target[K, T],
        want: Callable[[K, V], T | None],
        after_repair: Callable[[], Awaitable[None]] | None = None,
        *,
        grace: float = 10.0,
        repair_every: float = 600.0,
        retry_min: float = 0.1,
        retry_max: float = 60.0,
    ) -> None:
        """
        Args:
            want: what a row of the table is in the target, which often holds less; None for a row
                that the target shall not have.
            after_repair: called each time when the target has just been made equal to a table that
                is ready. May raise OSError as the target does.
            grace: seconds to wait for the table before writing what is known.
            repair_every: seconds between full comparisons with the target.
            retry_min: seconds; the wait doubles with each failure of a row.
            retry_max: seconds.
        """
        self.table = table
        self.target = target
        self.failures: dict[K, Failure] = {}
        self.target_failure: Failure | None = None
        self.repairs = 0
        self.synced = asyncio.Event()  # the target has been made equal to the table once
        self._want = want
        self._after_repair = after_repair
        self._grace = grace
        self._repair_every = repair_every
        self._retry_min = retry_min
        self._retry_max = retry_max
        self._repair_at = -math.inf  # event-loop time, seconds
        self._watch: Watch[K] | None = None
        self._lost: set[K] = set()  # what the table had, and the target may still have

    async def run(self) -> None:
        """Run until cancelled. Raises what the target raises, unless it is an OSError."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await self.table.ready()
        watch = self._watch = Watch(self.table)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_drift(watch), name=f"drift {self.table.name}")
            try:
                await self._loop(watch)
            finally:
                watch.close()

    def compare_soon(self) -> None:
        """Look at the whole target again: it has changed, or what `want` knows has."""
        self._repair_at = -math.inf
        if self._watch is not None:
            self._watch.wake()

    async def _loop(self, watch: Watch[K]) -> None:
        repaired_ready = False  # whether the last repair saw the whole table
        dirty, now = watch.take(), self._now()
        while True:
            self._note_lost(dirty)
            became_ready = self.table.is_ready > repaired_ready and not self.target_failure
            if now >= self._repair_at or became_ready:
                repaired_ready = await self._repair(watch, dirty)
            elif not self.target_failure:
                await self._apply(dirty)
            wake = self._wake_at()
            try:
                async with asyncio.timeout_at(wake):
                    dirty, now = await anext(watch), self._now()
            except TimeoutError:
                dirty, now = watch.take(), wake  # a timer may fire a hair early: `wake` is reached
            dirty |= {key for key, failure in self.failures.items() if failure.retry_at <= now}

    def _wake_at(self) -> float:
        """When there is something to do, even if nothing changes."""
        if self.target_failure:
            return self._repair_at  # no row can be written before the target answers again
        return min((self._repair_at, *(f.retry_at for f in self.failures.values())))

    async def _repair(self, watch: Watch[K], dirty: Collection[K]) -> bool:
        """Compare with the target and put right what differs; whether the target let us."""
        ready = self.table.is_ready
        # Before looking: who changes something meanwhile has it looked at again.
        self._repair_at = self._now() + self._repair_every
        try:
            differ = await self._compare()
            self.repairs += len(differ.difference(dirty)) if self.synced.is_set() else 0
            self.target_failure = None
            # The comparison has looked at every row: only what came since is dirty too.
            changed = watch.take()
            self._note_lost(changed)
            await self._apply(differ | changed)
            if ready and self._after_repair and not self.target_failure:
                await self._after_repair()
        except OSError as error:
            self._target_failed(error)
        if self.target_failure:
            return False
        self.synced.set()
        return ready

    async def _compare(self) -> set[K]:
        """The keys for which target and table differ, as far as the table can say."""
        actual = await self.target.actual()
        wanted = self._wanted
        keys = self.table.keys()
        differ = {key for key in keys if actual.get(key) != wanted(key)}
        gone = actual.keys() if self.table.is_ready else self._lost & actual.keys()
        differ.update(key for key in gone if key not in keys)
        return differ

    def _note_lost(self, dirty: Iterable[K]) -> None:
        """Remember what is to be deleted: while the table is half-read, no comparison can tell."""
        if not self.table.is_ready:
            self._lost.update(key for key in dirty if self.table.first(key) is None)

    async def _apply(self, dirty: Iterable[K]) -> None:
        for chunk in _chunks(dirty):
            puts, deletes = {}, []
            for key in chunk:
                value = self._wanted(key)
                if value is None:
                    deletes.append(key)
                else:
                    puts[key] = value
            try:
                failed = await self.target.apply(puts, deletes)
            except OSError as error:
                self._target_failed(error)  # compares everything once it answers again
                return
            self._lost.difference_update(key for key in chunk if key not in failed)
            if failed or self.failures:
                for key in chunk:
                    if key in failed:
                        self._failed(key, failed[key])
                    else:
                        self.failures.pop(key, None)

    def _wanted(self, key: K) -> T | None:
        row = self.table.first(key)
        return None if row is None else self._want(key, row)

    def _failed(self, key: K, error: OSError) -> None:
        self.failures[key] = failure = self._next(self.failures.get(key), error)
        wait = failure.retry_at - self._now()
        log.warning("%s: %s: %s; again in %.1f s", self.table.name, key, error, wait)

    def _target_failed(self, error: OSError) -> None:
        self.target_failure = failure = self._next(self.target_failure, error)
        self._repair_at = failure.retry_at
        wait = failure.retry_at - self._now()
        log.warning("%s: target does not answer: %s; again in %.1f s", self.table.name, error, wait)

    def _next(self, last: Failure | None, error: OSError) -> Failure:
        attempts = last.attempts + 1 if last else 1
        # The exponent is bounded, or a row that fails for a week overflows a float.
        wait = min(self._retry_max, self._retry_min * math.exp2(min(attempts - 1, 30)))
        return Failure(error, attempts, self._now() + wait)

    async def _follow_drift(self, watch: Watch[K]) -> None:
        async for keys in self.target.drift():
            if keys is None or not self.table.is_ready:
                self.compare_soon()  # a comparison knows what may not be deleted yet
            else:
                self.repairs += len(keys)
                for key in keys:
                    watch.touch(key)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _chunks(keys: Iterable[K]) -> Iterator[list[K]]:
    rest = iter(keys)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk

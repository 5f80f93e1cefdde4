"""
Tables: what is known, by key and by who said so.

Rows are kept once, in their writer. The table itself holds for each key only the tuple of its
writers, in the order in which they claimed it, and equal tuples are one object: 50,000 services
that all come from the same two clusters share one. That is 100 bytes a key less than a dict for
each key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)

_ABSENT: Final[Any] = object()


class Listener(Protocol[K_contra]):
    """Whoever wants to hear, synchronously, which key has changed."""

    def touch(self, key: K_contra) -> None:
        """`key` has changed, appeared or gone."""

    def wake(self) -> None:
        """The table has become ready."""


class Readable(Protocol[K, V_co]):
    """What a rule may read from: a table, or an index over one."""

    name: str
    listeners: set[Listener[K]]

    @property
    def is_ready(self) -> bool:
        """Whether everything has been listed once."""

    def rows(self, key: K) -> Mapping[Any, V_co]:
        """The rows of `key`, in the order in which they were claimed; empty if there are none."""

    def keys(self) -> Collection[K]:
        """Every key that has a row."""


class Table(Generic[K, V]):
    """
    Rows by key, at most one per origin (the cluster, file or process that wrote it).

    Two clusters that claim one key give two rows, not a race: whoever reads the table decides, and
    `clustermesh show` can print the conflict.

    Used from one event loop only. Rows must be immutable.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: set[Listener[K]] = set()
        self._writers: dict[str, Writer[K, V]] = {}
        self._holders: dict[K, tuple[Writer[K, V], ...]] = {}
        self._shared: dict[tuple[Writer[K, V], ...], tuple[Writer[K, V], ...]] = {}
        self._ready = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether every writer has listed its rows once; once true it stays true."""
        return self._ready.is_set()

    async def ready(self) -> None:
        """Wait until `is_ready`."""
        await self._ready.wait()

    @property
    def origins(self) -> Mapping[str, Writer[K, V]]:
        """The open writers by origin."""
        return self._writers

    def rows(self, key: K) -> Mapping[str, V]:
        """The rows of `key` by origin, the oldest claim first; empty if nobody has it."""
        return {w.origin: w.own[key] for w in self._holders.get(key, ())}

    def first(self, key: K) -> V | None:
        """The row that claimed `key` first: the row, in a table with one writer."""
        holders = self._holders.get(key)
        return holders[0].own[key] if holders else None

    def keys(self) -> Collection[K]:
        """Every key that somebody has."""
        return self._holders.keys()

    def __len__(self) -> int:
        return len(self._holders)

    def writer(self, origin: str) -> Writer[K, V]:
        """
        Open the rows of `origin` for writing.

        The table is not ready until this writer has finished its first listing, so open every
        writer that is known at start before anything reads.

        Raises:
            ValueError: `origin` already has a writer.
        """
        if origin in self._writers:
            raise ValueError(f"{self.name}: {origin!r} already has a writer")
        writer = self._writers[origin] = Writer(self, origin)
        return writer

    def _claim(self, key: K, writer: Writer[K, V]) -> None:
        self._hold(key, (*self._holders.get(key, ()), writer))

    def _release(self, key: K, writer: Writer[K, V]) -> None:
        left = tuple(w for w in self._holders[key] if w is not writer)
        if left:
            self._hold(key, left)
        else:
            del self._holders[key]

    def _hold(self, key: K, holders: tuple[Writer[K, V], ...]) -> None:
        self._holders[key] = self._shared.setdefault(holders, holders)

    def _touch(self, key: K) -> None:
        for listener in self.listeners:
            listener.touch(key)

    def _close(self, writer: Writer[K, V]) -> None:
        del self._writers[writer.origin]
        self._shared = {h: h for h in self._shared if writer not in h}
        self._check_ready()

    def _check_ready(self) -> None:
        if not self.is_ready and all(w.listed for w in self._writers.values()):
            self._ready.set()
            for listener in self.listeners:
                listener.wake()


class Writer(Generic[K, V]):
    """The one place that may change the rows of one origin."""

    def __init__(self, table: Table[K, V], origin: str) -> None:
        self.origin = origin
        self.listed = False
        self.own: dict[K, V] = {}
        self._table = table
        self._stale: set[K] = set()

    def put(self, key: K, value: V) -> None:
        """Set the row of `key`. Nobody is told if it is what was there."""
        if self._stale:
            self._stale.discard(key)
        old = self.own.get(key, _ABSENT)
        if old is not _ABSENT and old == value:
            return
        self.own[key] = value
        if old is _ABSENT:
            self._table._claim(key, self)  # noqa: SLF001 - a writer is a part of its table
        self._table._touch(key)  # noqa: SLF001

    def delete(self, key: K) -> None:
        """Forget `key`; not an error if it is already gone."""
        self._stale.discard(key)
        if self.own.pop(key, _ABSENT) is not _ABSENT:
            self._table._release(key, self)  # noqa: SLF001
            self._table._touch(key)  # noqa: SLF001

    def listing(self) -> None:
        """A new listing begins: whatever it does not name again is stale."""
        self._stale = set(self.own)

    def list_done(self) -> None:
        """The listing is complete: drop the stale rows."""
        for key in tuple(self._stale):
            self.delete(key)
        if not self.listed:
            self.listed = True
            self._table._check_ready()  # noqa: SLF001

    def replace(self, rows: Mapping[K, V]) -> None:
        """Make `rows` all that there is."""
        self.listing()
        for key, value in rows.items():
            self.put(key, value)
        self.list_done()

    def close(self) -> None:
        """
        The origin has left the mesh: drop all its rows.

        Not for a lost connection or our own shutdown. Those keep the rows, so that traffic flows
        on with the last known state.
        """
        for key in tuple(self.own):
            self.delete(key)
        self._table._close(self)  # noqa: SLF001


class Watch(Generic[K]):
    """
    Batches of keys to look at again, from one or several readables with the same kind of key.

    The first batch comes at once and holds every key. A batch is empty when only readiness changed.
    """

    def __init__(
        self, *readables: Readable[K, Any], context: Iterable[Readable[Any, Any]] = ()
    ) -> None:
        """
        Args:
            context: readables with other keys, of which any change makes every key dirty.
        """
        self._readables = readables
        self._all_changed = _Everything(self)
        self._context = tuple(context)
        self._dirty: set[K] = set()
        self._wake = asyncio.Event()
        self.touch_all()
        for readable in readables:
            readable.listeners.add(self)
        for other in self._context:
            other.listeners.add(self._all_changed)

    @property
    def is_ready(self) -> bool:
        """Whether everything that is watched is ready."""
        return all(r.is_ready for r in (*self._readables, *self._context))

    def touch(self, key: K) -> None:
        """Put `key` into the next batch."""
        self._dirty.add(key)
        self._wake.set()

    def touch_all(self) -> None:
        """Put every key into the next batch."""
        for readable in self._readables:
            self._dirty.update(readable.keys())
        self._wake.set()

    def wake(self) -> None:
        """Have a next batch, even an empty one."""
        self._wake.set()

    def __aiter__(self) -> Watch[K]:
        return self

    async def __anext__(self) -> set[K]:
        await self._wake.wait()
        return self.take()

    def take(self) -> set[K]:
        """The next batch, at once; it may be empty."""
        self._wake.clear()
        dirty, self._dirty = self._dirty, set()
        return dirty

    def close(self) -> None:
        """Stop watching."""
        for readable in self._readables:
            readable.listeners.discard(self)
        for other in self._context:
            other.listeners.discard(self._all_changed)


class _Everything:
    """Tells a watch that every key has to be looked at again, whichever key has changed."""

    def __init__(self, watch: Watch[Any]) -> None:
        self._watch = watch

    def touch(self, key: object) -> None:
        del key
        self._watch.touch_all()

    def wake(self) -> None:
        self._watch.wake()

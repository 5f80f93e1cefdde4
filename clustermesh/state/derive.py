from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, overload

from .table import Readable, Table, Watch, Writer

K = TypeVar("K", bound=Hashable)
L = TypeVar("L", bound=Hashable)
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
W = TypeVar("W")

_BREATH: Final = 256
"""Keys after which other tasks get a turn: a few milliseconds of work."""


@overload
async def derive(
    inputs: tuple[Readable[K, A]],
    target: Writer[L, W],
    rule: Callable[[K, Mapping[Any, A]], Mapping[L, W]],
    *,
    context: Iterable[Readable[Any, Any]] = (),
    waiting: Waiting[K, L] | None = None,
) -> None: ...
@overload
async def derive(
    inputs: tuple[Readable[K, A], Readable[K, B]],
    target: Writer[L, W],
    rule: Callable[[K, Mapping[Any, A], Mapping[Any, B]], Mapping[L, W]],
    *,
    context: Iterable[Readable[Any, Any]] = (),
    waiting: Waiting[K, L] | None = None,
) -> None: ...
@overload
async def derive(
    inputs: tuple[Readable[K, A], Readable[K, B], Readable[K, C]],
    target: Writer[L, W],
    rule: Callable[[K, Mapping[Any, A], Mapping[Any, B], Mapping[Any, C]], Mapping[L, W]],
    *,
    context: Iterable[Readable[Any, Any]] = (),
    waiting: Waiting[K, L] | None = None,
) -> None: ...
async def derive(
    inputs: tuple[Readable[Any, Any], ...],
    target: Writer[L, W],
    rule: Callable[..., Mapping[L, W]],
    *,
    context: Iterable[Readable[Any, Any]] = (),
    waiting: Waiting[Any, L] | None = None,
) -> None:
    """
    Keep `target` equal to `rule` applied to every key of `inputs`, forever.

    Args:
        inputs: readables with the same kind of key, joined on it.
        rule: a pure function from a key, and its rows in each of the inputs, to the rows that they
            stand for. Not called for a key that no input has. Of two keys that stand for the same
            row, the first keeps it, and the second gets it when the first lets go.
        context: what `rule` also looks into. Any change there makes every key of the inputs be
            looked at again, so it should be small or change seldom.
        waiting: is kept up to date, for whoever wants to see which keys wait.
    """
    watch = Watch(*inputs, context=context)
    output = _Output(target, watch, Waiting() if waiting is None else waiting)
    try:
        async for batch in watch:
            ready = watch.is_ready  # as of this batch: while it is worked on, more may come
            for count, key in enumerate(batch, 1):
                rows = [readable.rows(key) for readable in inputs]
                output.set(key, rule(key, *rows) if any(rows) else {})
                if count % _BREATH == 0:
                    await asyncio.sleep(0)
            if ready and not target.listed:
                target.list_done()
    finally:
        watch.close()


class Waiting(Generic[K, L]):
    """Which keys wait for rows that another key has. Only `derive` changes it."""

    def __init__(self) -> None:
        self._rows: dict[K, tuple[L, ...]] = {}
        self._keys: dict[L, dict[K, None]] = {}

    def rows(self, key: K) -> Sequence[L]:
        """What `key` waits for."""
        return self._rows.get(key, ())

    def keys(self, row: L) -> Collection[K]:
        """Those that wait for `row`, the one that came first first."""
        return self._keys.get(row, {}).keys()

    def items(self) -> Iterable[tuple[K, Sequence[L]]]:
        """Every key that waits, and for what."""
        return self._rows.items()

    def set(self, key: K, rows: Sequence[L]) -> None:
        """Let `key` wait for these, and for nothing else."""
        old = self._rows.pop(key, ())
        for row in old:
            if row not in rows:
                del self._keys[row][key]
                if not self._keys[row]:
                    del self._keys[row]
        for row in rows:
            self._keys.setdefault(row, {})[key] = None
        if rows:
            self._rows[key] = tuple(rows)


class _Output(Generic[K, L, W]):
    """What each key stands for at present."""

    def __init__(self, target: Writer[L, W], watch: Watch[K], waiting: Waiting[K, L]) -> None:
        self._target = target
        self._watch = watch
        self._waiting = waiting
        self._made: dict[K, tuple[L, ...]] = {}

    def set(self, key: K, rows: Mapping[L, W]) -> None:
        old = self._made.pop(key, ())
        for gone in old:
            if gone not in rows:
                self._target.delete(gone)
                for waiting in self._waiting.keys(gone):
                    self._watch.touch(waiting)
        kept, missed = [], []
        for out, value in rows.items():
            if out in old or out not in self._target.own:
                self._target.put(out, value)
                kept.append(out)
            else:
                missed.append(out)
        if kept:
            self._made[key] = tuple(kept)
        self._waiting.set(key, missed)


async def derive_whole(
    inputs: Sequence[Table[Any, Any]],
    target: Writer[L, W],
    rule: Callable[[], Mapping[L, W]],
) -> None:
    """
    Keep `target` equal to what `rule` makes of `inputs` as a whole, forever.

    For what no single key can tell, such as which CIDRs overlap. Costs a pass over everything for
    each batch of changes, so the inputs should change seldom.
    """
    watch: Watch[Any] = Watch(*inputs)
    try:
        async for _ in watch:
            rows = rule()
            for gone in target.own.keys() - rows.keys():
                target.delete(gone)
            for key, value in rows.items():
                target.put(key, value)
            if watch.is_ready and not target.listed:
                target.list_done()
            await asyncio.sleep(0)
    finally:
        watch.close()

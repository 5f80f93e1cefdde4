from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from clustermesh.state import Failure, Reconciler, Table
from clustermesh.status import Remote, RowFailure, TableStatus

from .prometheus import CollectorRegistry, ProcessCollector

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Renderer: TypeAlias = Callable[[K, Mapping[str, V]], Iterable[Mapping[str, Any]]]
"""From a key and its rows by origin to what a person reads: one row, or one for each origin.

The values are what JSON has: text, numbers, true, null, lists and mappings of them. A field
`refused` or `conflict` says why the row is not used; empty or absent, it is."""


class Daemon:
    """
    What a running daemon shows of itself.

    Everything is read when somebody asks, in the event loop; the callables must be quick, do no
    I/O and change nothing.
    """

    def __init__(
        self, name: str, version: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            name: `agent` or `apiserver`.
            clock: seconds, for the uptime.
        """
        self.name: Final = name
        self.version: Final = version
        self.metrics: Final = CollectorRegistry()
        """For the counters and histograms of parts that keep their own."""
        ProcessCollector(registry=self.metrics)
        self._clock = clock
        self._started = clock()
        self._tables: dict[str, ShownTable] = {}
        self._status: dict[str, Callable[[], object]] = {}
        self._readiness: dict[str, Callable[[], str | None]] = {}
        self._remotes: Callable[[], Iterable[Remote]] = tuple

    def add_table(
        self,
        name: str,
        table: Table[K, V],
        render: Renderer[K, V],
        *,
        reconcilers: Sequence[Reconciler[Any, Any, Any]] = (),
        bad_rows: Callable[[], Iterable[RowFailure]] = tuple,
    ) -> None:
        """
        Serve `table` as `/tables/<name>`.

        Args:
            reconcilers: those that put the table into the world; their failures are shown with it.
            bad_rows: rows of peers that were skipped, and why.

        Raises:
            ValueError: there is a table of that name.
        """
        if name in self._tables:
            raise ValueError(f"there already is a table {name!r}")
        self._tables[name] = ShownTable(table, render, tuple(reconcilers), bad_rows)

    def add_status(self, name: str, give: Callable[[], object]) -> None:
        """Put `give()` into `/status` as the field `name`: a msgspec struct or JSON-able value."""
        self._status[name] = give

    def add_readiness(self, name: str, reason: Callable[[], str | None]) -> None:
        """Count as ready only while `reason()` is None; otherwise it says what is missing."""
        self._readiness[name] = reason

    def add_remotes(self, remotes: Callable[[], Iterable[Remote]]) -> None:
        """Show `remotes()` in `/status`, and count them in `/metrics`."""
        self._remotes = remotes

    @property
    def tables(self) -> Mapping[str, ShownTable]:
        """What was added, by name."""
        return self._tables

    def remotes(self) -> list[Remote]:
        """The other clusters as they are now."""
        return list(self._remotes())

    def reasons(self) -> list[str]:
        """Why the daemon is not ready; empty when it is. One that was told nothing yet is not."""
        if not self._readiness:
            return ["it is starting"]
        found = ((name, reason()) for name, reason in self._readiness.items())
        return [f"{name}: {reason}" for name, reason in found if reason is not None]

    def status(self) -> dict[str, object]:
        """What `/status` says, as values that JSON has: see `DaemonStatus`."""
        reasons = self.reasons()
        return {
            "daemon": self.name,
            "version": self.version,
            "uptime": round(self._clock() - self._started, 3),
            "ready": not reasons,
            "reasons": reasons,
            **{name: msgspec.to_builtins(give()) for name, give in self._status.items()},
            "remotes": msgspec.to_builtins(self.remotes()),
            "tables": {
                name: msgspec.to_builtins(shown.status()) for name, shown in self._tables.items()
            },
        }


@dataclass(frozen=True, slots=True)
class ShownTable:
    """A table, how to print it, and who puts it where."""

    table: Table[Any, Any]
    render: Renderer[Any, Any]
    reconcilers: tuple[Reconciler[Any, Any, Any], ...]
    bad_rows: Callable[[], Iterable[RowFailure]]

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """
        What a person reads, row by row, in no order.

        The table may change between two rows; a row that goes in the meantime is left out.
        """
        for key in tuple(self.table.keys()):
            if by_origin := self.table.rows(key):
                yield from self.render(key, by_origin)

    def failures(self) -> Iterator[RowFailure]:
        """What is not in its place, and why. The same holds."""
        now = asyncio.get_running_loop().time()
        for reconciler in self.reconcilers:
            if reconciler.target_failure is not None:
                yield _row_failure(None, reconciler.target_failure, now)
            for key, failure in tuple(reconciler.failures.items()):
                yield _row_failure(str(key), failure, now)
        yield from tuple(self.bad_rows())

    def status(self) -> TableStatus:
        """How much there is, and how much is not in its place."""
        failing = sum(counts.failing for counts in self.counts())
        return TableStatus(len(self.table), failing, sum(1 for _ in self.bad_rows()))

    def counts(self) -> list[ReconcilerCounts]:
        """What the reconcilers have to say in numbers."""
        return [
            ReconcilerCounts(len(r.failures) + (r.target_failure is not None), r.repairs)
            for r in self.reconcilers
        ]


@dataclass(frozen=True, slots=True)
class ReconcilerCounts:
    """How a reconciler does."""

    failing: int  # rows, and one more when the target as a whole does not answer
    repairs: int  # since start


def _row_failure(key: str | None, failure: Failure, now: float) -> RowFailure:
    return RowFailure(
        key=key,
        error=str(failure.error) or type(failure.error).__name__,
        attempts=failure.attempts,
        retry_in=round(max(0.0, failure.retry_at - now), 3),
    )

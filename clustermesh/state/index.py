from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from .table import Listener, Table

G = TypeVar("G", bound=Hashable)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Index(Generic[G, K, V]):
    """
    A table seen by another key: the EndpointSlices of a Service, the Pods that claim an address.

    `rows(group)` are the table's rows whose `groups` name that group, by their own key, the oldest
    claim first. Follows the table synchronously and costs one entry per row and group.
    """

    def __init__(
        self, name: str, table: Table[K, V], groups: Callable[[K, V], Iterable[G]]
    ) -> None:
        """
        Args:
            groups: a pure function from a key and its (first) row to the groups it belongs to.
        """
        self.name = name
        self.listeners: set[Listener[G]] = set()
        self._table = table
        self._groups = groups
        self._rows: dict[G, dict[K, V]] = {}
        self._groups_of: dict[K, tuple[G, ...]] = {}
        table.listeners.add(self)
        for key in table.keys():
            self.touch(key)

    @property
    def is_ready(self) -> bool:
        """Whether the table is ready."""
        return self._table.is_ready

    def rows(self, key: G) -> Mapping[K, V]:
        """The table's rows that belong to the group `key`."""
        return self._rows.get(key, {})

    def keys(self) -> Collection[G]:
        """Every group that has a row."""
        return self._rows.keys()

    def touch(self, key: K) -> None:
        """The table's `key` has changed."""
        row = self._table.first(key)
        old = self._groups_of.pop(key, ())
        new = () if row is None else tuple(dict.fromkeys(self._groups(key, row)))
        for group in old:
            if group not in new:
                rows = self._rows[group]
                del rows[key]
                if not rows:
                    del self._rows[group]
        if row is not None:
            for group in new:
                self._rows.setdefault(group, {})[key] = row
            if new:
                self._groups_of[key] = new
        for listener in self.listeners:
            for group in {*old, *new}:
                listener.touch(group)

    def wake(self) -> None:
        """The table has become ready."""
        for listener in self.listeners:
            listener.wake()

"""Our own etcd, as a place to write to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from clustermesh.etcd import Etcd, EtcdTarget, Leases
from clustermesh.state import Reconciler, Table

from .users import Users

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Place:
    """
    Our own etcd, for what belongs together: it hangs on leases of its own.

    Nothing is written before the users of that very etcd are set up. One that lost its data is
    always looked at before it is filled again, and it has lost its users along with the rest.
    """

    def __init__(self, etcd: Etcd, users: Users) -> None:
        self.leases: Final = Leases(etcd)
        self._etcd = etcd
        self._users = users
        self._canaries: dict[str, Reconciler[Any, Any, Any]] = {}

    def target(
        self,
        prefix: str,
        encode: Callable[[K], bytes],
        decode: Callable[[bytes], K],
        *,
        leased: bool = True,
    ) -> EtcdTarget[K]:
        """The keys below `prefix`: see EtcdTarget."""
        leases = self.leases if leased else None
        return _Target(self._users, self._etcd, prefix, encode, decode, leases)

    def with_canary(
        self,
        key: str,
        table: Table[K, V],
        target: EtcdTarget[K],
        want: Callable[[K, V], bytes | None],
    ) -> Reconciler[K, V, bytes]:
        """What keeps `target` equal to `table`, and writes `key` when all of it is there."""

        async def put() -> None:
            # In an etcd that was replaced since the rows were seen, the lease is lost: this fails.
            if await self._etcd.get(key.encode()) is None:
                await self.put(key, now())

        reconciler = self._canaries[key] = Reconciler(table, target, want, put)
        return reconciler

    async def look_after_canaries(self) -> None:
        """
        One that is gone, as with a lost lease, comes back when all its rows have been seen.

        Raises:
            EtcdError: they cannot be looked at.
        """
        for key, reconciler in self._canaries.items():
            is_due = reconciler.synced.is_set() and reconciler.table.is_ready
            if is_due and await self._etcd.get(key.encode()) is None:
                reconciler.compare_soon()

    async def put(self, key: str, value: bytes) -> None:
        """Write a key. Raises EtcdError; see Leases."""
        await self.leases.put(key.encode(), value)


class _Target(EtcdTarget[K]):
    def __init__(self, users: Users, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._users = users

    async def actual(self) -> Mapping[K, bytes]:
        """See Target."""
        await self._users.ensure()
        return await super().actual()


def now() -> bytes:
    """The time, as canaries and heartbeats say it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z").encode()

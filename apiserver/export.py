"""
What the apiserver keeps in its etcd, and when.

Each kind of row is a table that a reconciler keeps equal to a prefix. Only after the whole of a
kind is in etcd does its canary appear, which tells readers that they may prune; and if the etcd
loses its data (it is a cache), the canary comes back only after the rows are back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from clustermesh import kinds
from clustermesh.errors import BadRowError
from clustermesh.etcd import Etcd, EtcdError, EtcdTarget, Leases
from clustermesh.kinds import Kind
from clustermesh.model import ClusterConfig, ClusterName
from clustermesh.state import Reconciler, Table

from .tables import Exports
from .users import Users

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = logging.getLogger(__name__)

_HEARTBEAT_RETRY: Final = 5.0  # seconds


class _Target(EtcdTarget[K]):
    """
    A prefix of an etcd whose users are set up.

    An etcd that lost its data is always looked at before it is filled again, and it has lost its
    users along with the rest.
    """

    def __init__(self, users: Users, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._users = users

    async def actual(self) -> Mapping[K, bytes]:
        """See Target."""
        await self._users.ensure()
        return await super().actual()


class Exporter:
    """Writes the exports of one cluster into its etcd."""

    def __init__(
        self,
        etcd: Etcd,
        users: Users,
        cluster: ClusterName,
        exports: Exports,
        *,
        beat_every: float = kinds.HEARTBEAT_EVERY,
    ) -> None:
        """
        Args:
            beat_every: seconds between heartbeats.
        """
        self._etcd = etcd
        self._beat_every = beat_every
        self._canaries: dict[bytes, Reconciler[Any, Any, Any]] = {}
        self._users = users
        self._cluster = cluster
        self._leases = Leases(etcd)
        self._configs: Table[ClusterName, ClusterConfig] = Table("cluster-config")
        self.reconcilers: dict[str, Reconciler[Any, Any, Any]] = {
            "cluster-config": Reconciler(
                self._configs,
                _Target(
                    users,
                    etcd,
                    kinds.CLUSTER_CONFIGS,
                    lambda name: kinds.cluster_config_key(name).encode(),
                    self._own_config,
                    self._leases,
                ),
                lambda _, config: kinds.encode_cluster_config(config),
            ),
            "nodes": self._reconciler(kinds.NODES, exports.nodes),
            "services": self._reconciler(kinds.SERVICES, exports.services, lambda s: s.shared),
            "local-services": self._reconciler(kinds.LOCAL_SERVICES, exports.services),
            "identities": self._reconciler(kinds.IDENTITIES, exports.identities, leased=False),
            "endpoints": self._reconciler(kinds.ENDPOINTS, exports.endpoints),
        }

    async def run(self, config: ClusterConfig) -> None:
        """Introduce the cluster as `config`, and keep everything in etcd until cancelled."""
        self._configs.writer("settings").replace({self._cluster: config})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leases.run(), name="leases")
            tasks.create_task(self._beat(), name="heartbeat")
            for name, reconciler in self.reconcilers.items():
                tasks.create_task(reconciler.run(), name=f"reconcile {name}")

    def _reconciler(
        self,
        kind: Kind[K, V],
        table: Table[K, V],
        is_exported: Callable[[V], bool] = lambda _: True,
        *,
        leased: bool = True,
    ) -> Reconciler[K, V, bytes]:
        prefix = kind.prefix(self._cluster)
        target: _Target[K] = _Target(
            self._users,
            self._etcd,
            prefix,
            lambda key: (prefix + kind.key(key)).encode(),
            lambda key: kind.parse_key(key.decode(errors="replace").removeprefix(prefix)),
            self._leases if leased else None,
        )

        def want(_: K, row: V) -> bytes | None:
            return kind.encode(row) if is_exported(row) else None

        canary = kind.canary(self._cluster).encode()
        reconciler = Reconciler(table, target, want, self._canary(canary))
        self._canaries[canary] = reconciler
        return reconciler

    def _canary(self, key: bytes) -> Callable[[], Awaitable[None]]:
        async def put() -> None:
            # In an etcd that was replaced since the rows were seen, the lease is lost: this fails.
            if await self._etcd.get(key) is None:
                await self._leases.put(key, _now())

        return put

    async def _beat(self) -> None:
        """Show readers, every minute, that what they read is not abandoned."""
        key = kinds.HEARTBEAT.encode()
        while True:
            try:
                await self._leases.put(key, _now())
                await self._look_after_canaries()
            except EtcdError as error:
                log.warning("heartbeat: %s", error)
                await asyncio.sleep(_HEARTBEAT_RETRY)
            else:
                await asyncio.sleep(self._beat_every)

    async def _look_after_canaries(self) -> None:
        """One that is gone, as with a lost lease, comes back when all its rows have been seen."""
        for key, reconciler in self._canaries.items():
            is_due = reconciler.synced.is_set() and reconciler.table.is_ready
            if is_due and await self._etcd.get(key) is None:
                reconciler.compare_soon()

    def _own_config(self, key: bytes) -> ClusterName:
        if key != kinds.cluster_config_key(self._cluster).encode():
            raise BadRowError("it is another cluster's")
        return self._cluster


def _now() -> bytes:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z").encode()

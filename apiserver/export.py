"""
What the apiserver keeps in its etcd, and when.

Each kind of row is a table that a reconciler keeps equal to a prefix. Only after the whole of a
kind is in etcd does its canary appear, which tells readers that they may prune; and if the etcd
loses its data (it is a cache), the canary comes back only after the rows are back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from clustermesh import kinds
from clustermesh.errors import BadRowError
from clustermesh.etcd import Etcd, EtcdError
from clustermesh.kinds import Kind
from clustermesh.model import ClusterConfig, ClusterName
from clustermesh.state import Reconciler, Table

from .place import Place, now
from .tables import Exports
from .users import Users

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = logging.getLogger(__name__)

_HEARTBEAT_RETRY: Final = 5.0  # seconds


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
        self._beat_every = beat_every
        self._cluster = cluster
        self._place = Place(etcd, users)
        self._configs: Table[ClusterName, ClusterConfig] = Table("cluster-config")
        self.reconcilers: dict[str, Reconciler[Any, Any, Any]] = {
            "cluster-config": Reconciler(
                self._configs,
                self._place.target(
                    kinds.CLUSTER_CONFIGS,
                    lambda name: kinds.cluster_config_key(name).encode(),
                    self._own_config,
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
            tasks.create_task(self._place.leases.run(), name="leases")
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
        target = self._place.target(
            prefix,
            lambda key: (prefix + kind.key(key)).encode(),
            lambda key: kind.parse_key(key.decode(errors="replace").removeprefix(prefix)),
            leased=leased,
        )

        def want(_: K, row: V) -> bytes | None:
            return kind.encode(row) if is_exported(row) else None

        return self._place.with_canary(kind.canary(self._cluster), table, target, want)

    async def _beat(self) -> None:
        """Show readers, every minute, that what they read is not abandoned."""
        while True:
            try:
                await self._place.put(kinds.HEARTBEAT, now())
                await self._place.look_after_canaries()
            except EtcdError as error:
                log.warning("heartbeat: %s", error)
                await asyncio.sleep(_HEARTBEAT_RETRY)
            else:
                await asyncio.sleep(self._beat_every)

    def _own_config(self, key: bytes) -> ClusterName:
        if key != kinds.cluster_config_key(self._cluster).encode():
            raise BadRowError("it is another cluster's")
        return self._cluster

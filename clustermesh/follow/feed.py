from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from clustermesh import kinds
from clustermesh.errors import BadRowError
from clustermesh.etcd import Etcd, Health, etcd_source
from clustermesh.kinds import Kind, Owner
from clustermesh.model import ClusterConfig
from clustermesh.state import Writer, replicate

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

CANARY_EVERY: Final = 0.2  # seconds


@dataclass
class Feed(Generic[K, V]):
    """One kind of row of one cluster, on its way into a table."""

    kind: Kind[K, V]
    writer: Writer[K, V]
    health: Health

    async def run(self, etcd: Etcd, owner: Owner, config: ClusterConfig) -> None:
        """
        Follow forever. Nothing is listed, so nothing swept away, before the canary is there.

        Nor while the cluster is another one than `config` says, as it may be when its etcd was
        replaced: all its rows would be bad. Whoever runs this has to find that out.
        """
        prefix = self.kind.prefix(owner.cluster, cached=config.cached)

        async def before_listing() -> None:
            while not await self._is_complete(etcd, config, owner):  # noqa: ASYNC110
                await asyncio.sleep(CANARY_EVERY)

        def decode_key(key: bytes) -> K:
            return self.kind.parse_key(key.decode(errors="replace").removeprefix(prefix))

        def decode(key: bytes, value: bytes) -> tuple[K, V]:
            row_key = decode_key(key)
            return row_key, self.kind.decode(owner, row_key, value)

        await replicate(
            etcd_source(
                etcd,
                prefix,
                decode,
                decode_key,
                health=self.health,
                before_listing=before_listing,
            ),
            self.writer,
        )

    async def _is_complete(self, etcd: Etcd, config: ClusterConfig, owner: Owner) -> bool:
        canary = self.kind.canary(owner.cluster, cached=config.cached)
        if config.synced_canaries and await etcd.get(canary.encode()) is None:
            return False
        value = await etcd.get(kinds.cluster_config_key(owner.cluster).encode())
        try:
            return value is not None and kinds.decode_cluster_config(value) == config
        except BadRowError:
            return False

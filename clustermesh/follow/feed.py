from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

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
        """Follow forever. Nothing is listed, so nothing swept away, before the canary is there."""
        prefix = self.kind.prefix(owner.cluster, cached=config.cached)
        canary = self.kind.canary(owner.cluster, cached=config.cached).encode()

        async def before_listing() -> None:
            while config.synced_canaries and await etcd.get(canary) is None:  # noqa: ASYNC110
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

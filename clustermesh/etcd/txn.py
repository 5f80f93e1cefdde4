from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

MAX_OPS: Final = 128
"""STABLE API: `--max-txn-ops` of etcd by default; a transaction with more is refused."""

MAX_BYTES: Final = 1 << 20
"""Below `--max-request-bytes` of etcd, 1.5 MiB by default."""


class Write(NamedTuple):
    """What a key is to be."""

    key: bytes
    value: bytes | None  # None: gone
    lease: int = 0  # 0: it stays until it is deleted


def batches(writes: Iterable[Write]) -> Iterator[list[Write]]:
    """
    Split `writes` into transactions that etcd accepts, in order.

    etcd refuses one key twice in a transaction, so of several writes to a key the last one counts.
    That also makes the transactions independent: they may be in flight together. A single write
    that is too large still comes, alone, for etcd to refuse.
    """
    batch: list[Write] = []
    size = 0
    for write in {write.key: write for write in writes}.values():
        length = len(write.key) + len(write.value or b"")
        if batch and (len(batch) == MAX_OPS or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += length
    if batch:
        yield batch

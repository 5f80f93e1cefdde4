"""
Waits until all of a cluster's canaries are in its etcd.

Prints as JSON, by kind, when each was seen there, in seconds of the monotonic clock that all
processes share, and how many rows of the kind there were right after the last one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from clustermesh import kinds
from clustermesh.etcd import Etcd, EtcdError, make_config
from clustermesh.kinds import Kind
from clustermesh.model import ClusterName

from .fill import ETCD

_KINDS: Final[dict[str, Kind[Any, Any]]] = {
    "services": kinds.SERVICES,
    "local services": kinds.LOCAL_SERVICES,
    "nodes": kinds.NODES,
    "identities": kinds.IDENTITIES,
    "endpoints": kinds.ENDPOINTS,
}
_POLL: Final = 0.05  # seconds
_TIMEOUT: Final = 110.0


def main() -> None:
    """Wait, and say when."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--certificates", type=Path, required=True)
    json.dump(asyncio.run(_watch(parser.parse_args())), sys.stdout)


async def _watch(options: argparse.Namespace) -> dict[str, tuple[float, int]]:
    cluster = ClusterName(options.cluster)
    missing = {kind.canary(cluster).encode(): name for name, kind in _KINDS.items()}
    files = (options.certificates / name for name in ("ca.crt", "admin.crt", "admin.key"))
    seen = {}
    async with (
        asyncio.timeout(_TIMEOUT),
        Etcd(make_config([ETCD], *files, where="etcd")) as etcd,
    ):
        while missing:
            # An etcd that was empty is just being given its users: it refuses what comes between.
            with contextlib.suppress(EtcdError):
                for key in [key for key in missing if await etcd.get(key) is not None]:
                    seen[missing.pop(key)] = time.monotonic()
            await asyncio.sleep(_POLL)
        return {
            name: (moment, await _count(etcd, _KINDS[name].prefix(cluster)))
            for name, moment in seen.items()
        }


async def _count(etcd: Etcd, prefix: str) -> int:
    return sum([len(page.rows) async for page in etcd.range(prefix.encode())])


if __name__ == "__main__":
    main()

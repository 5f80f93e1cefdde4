"""The other clusters: one reader for each file in a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from clustermesh.etcd import read_config
from clustermesh.model import ClusterName
from clustermesh.peers import PeerFile, peer_files
from clustermesh.status import Remote, RowFailure

from .cache import Cache
from .cluster import ClusterIds, ClusterReader, Pace
from .tables import Read


class Remotes:
    """
    Follows every cluster that `directory` has a file for.

    A file that appears connects, one that changes reconnects, one that goes away drains its
    cluster. Stopping drains nothing.
    """

    def __init__(
        self,
        directory: Path,
        ids: ClusterIds,
        tables: Read,
        cache: Cache,
        pace: Pace = Pace(),  # noqa: B008 - it cannot change
    ) -> None:
        self.readers: dict[ClusterName, ClusterReader] = {}
        self._ids = ids
        self._tables = tables
        self._cache = cache
        self._pace = pace
        self._changes: AsyncIterator[Mapping[ClusterName, PeerFile]] = peer_files(
            directory, ids.own
        )
        self._files: Mapping[ClusterName, PeerFile] = {}

    async def open(self) -> None:
        """
        Open the clusters that are known at start.

        To be called before anything is derived: a table is ready only when all of these are read.
        """
        self._files = await anext(self._changes)
        for name in self._files:
            self._reader(name)

    async def run(self) -> None:
        """Follow the directory, and the clusters, until cancelled."""
        running: dict[ClusterName, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            files, known = self._files, dict[ClusterName, PeerFile]()
            while True:
                changed = [name for name, file in known.items() if files.get(name) != file]
                for name in changed:
                    running[name].cancel()
                    await asyncio.wait([running.pop(name)])
                await self._drain([self.readers.pop(name) for name in changed if name not in files])
                for name, file in files.items():
                    if name not in running:
                        running[name] = tasks.create_task(
                            self._reader(name).run(partial(read_config, file.path)),
                            name=f"cluster {name}",
                        )
                known = dict(files)
                files = await anext(self._changes)

    async def _drain(self, leaving: Sequence[ClusterReader]) -> None:
        """First nothing new goes there; then, when what is under way has ended, nothing at all."""
        for reader in leaving:
            reader.leave_services()
        if leaving:
            await asyncio.sleep(self._pace.drain)
        for reader in leaving:
            reader.leave()

    def status(self) -> Iterator[Remote]:
        """How each of them does."""
        return (reader.status() for _, reader in sorted(self.readers.items()))

    def bad_rows(self, kind: str) -> Iterator[RowFailure]:
        """The rows of each of them that are skipped at present."""
        for reader in self.readers.values():
            yield from reader.bad_rows(kind)

    def _reader(self, name: ClusterName) -> ClusterReader:
        if name not in self.readers:
            self.readers[name] = ClusterReader(
                name, self._ids, self._tables, self._cache, self._pace
            )
        return self.readers[name]

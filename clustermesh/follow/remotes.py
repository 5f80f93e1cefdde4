"""The other clusters: one member for each file in a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from clustermesh.etcd import EtcdConfig, read_config
from clustermesh.model import ClusterName
from clustermesh.peers import PeerFile, peer_files
from clustermesh.status import Remote, RowFailure

_DRAIN: Final = 2.0  # seconds


class Member(Protocol):
    """What is kept of one of the other clusters."""

    async def run(self, read_config: Callable[[], EtcdConfig]) -> None:
        """
        Follow the cluster until cancelled, which withdraws nothing. It may be followed again.

        Args:
            read_config: how its etcd is reached. May raise UserError.
        """

    async def leave_services(self) -> None:
        """The cluster is about to leave: nothing new shall be sent to its backends."""

    async def leave(self) -> None:
        """The cluster is not connected any more: withdraw all it said."""

    def status(self) -> Remote:
        """How it goes."""

    def bad_rows(self, kind: str) -> Iterator[RowFailure]:
        """The rows that are skipped at present."""


M = TypeVar("M", bound=Member)


class Remotes(Generic[M]):
    """
    Follows every cluster that `directory` has a file for.

    A file that appears connects, one that changes reconnects, one that goes away drains its
    cluster. Stopping drains nothing.
    """

    def __init__(
        self,
        directory: Path,
        own: ClusterName,
        make: Callable[[ClusterName], M],
        *,
        drain: float = _DRAIN,
    ) -> None:
        """
        Args:
            make: a member for a cluster.
            drain: seconds between the services of a cluster that leaves, and the ways to its pods.
        """
        self.members: dict[ClusterName, M] = {}
        self._make = make
        self._drain_for = drain
        self._changes: AsyncIterator[Mapping[ClusterName, PeerFile]] = peer_files(directory, own)
        self._files: Mapping[ClusterName, PeerFile] = {}

    async def open(self) -> None:
        """
        Open the clusters that are known at start.

        To be called before anything is derived: a table is ready only when all of these are read.
        """
        self._files = await anext(self._changes)
        for name in self._files:
            self._member(name)

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
                await self._drain([self.members.pop(name) for name in changed if name not in files])
                for name, file in files.items():
                    if name not in running:
                        running[name] = tasks.create_task(
                            self._member(name).run(partial(read_config, file.path)),
                            name=f"cluster {name}",
                        )
                known = dict(files)
                files = await anext(self._changes)

    async def _drain(self, leaving: Sequence[M]) -> None:
        """First nothing new goes there; then, when what is under way has ended, nothing at all."""
        for member in leaving:
            await member.leave_services()
        if leaving:
            await asyncio.sleep(self._drain_for)
        for member in leaving:
            await member.leave()

    def status(self) -> Iterator[Remote]:
        """How each of them does."""
        return (member.status() for _, member in sorted(self.members.items()))

    def bad_rows(self, kind: str) -> Iterator[RowFailure]:
        """The rows of each of them that are skipped at present."""
        for member in self.members.values():
            yield from member.bad_rows(kind)

    def _member(self, name: ClusterName) -> M:
        if name not in self.members:
            self.members[name] = self._make(name)
        return self.members[name]

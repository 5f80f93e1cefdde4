"""
A copy of another cluster in our own etcd, so that our agents have one etcd to talk to, and need not
reach the others'.

The copy is byte for byte. Nobody judges it here: agents trust it no further than they would trust
the cluster itself. It hangs on leases of its own, which are given back when the cluster leaves; a
cluster that left while nobody was here to see it goes with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from msgspec.structs import replace

from clustermesh import kinds
from clustermesh.errors import BadRowError, UserError
from clustermesh.etcd import Etcd, EtcdConfig, EtcdError, Health
from clustermesh.follow import ClusterIds, Feed, Follower, Pace
from clustermesh.kinds import Kind
from clustermesh.model import ClusterConfig, ClusterName
from clustermesh.state import Reconciler, Table, Writer
from clustermesh.status import Remote, RemoteState, RowFailure

from .place import Place
from .users import Users

log = logging.getLogger(__name__)

_KINDS: Final[tuple[Kind[Any, Any], ...]] = (
    kinds.NODES,
    kinds.SERVICES,
    kinds.IDENTITIES,
    kinds.ENDPOINTS,
)


class Mirror:
    """Keeps the copy of one cluster. While the cluster cannot be read, it stays as it is."""

    def __init__(
        self,
        name: ClusterName,
        ids: ClusterIds,
        etcd: Etcd,
        users: Users,
        pace: Pace = Pace(),  # noqa: B008 - it cannot change
    ) -> None:
        """
        Args:
            etcd: our own.
        """
        self._name = name
        self._ids = ids
        self._etcd = etcd
        self._place = Place(etcd, users)
        self.reconcilers: Final[list[Reconciler[str, bytes, bytes]]] = []
        config, heartbeat = self._single(kinds.CLUSTER_CONFIGS), self._single(kinds.HEARTBEATS)

        def introduced(said: ClusterConfig) -> None:
            copy = replace(said, cached=True, synced_canaries=True)
            config.replace({name: kinds.encode_cluster_config(copy)})

        def beaten(beat: bytes) -> None:
            heartbeat.replace({name: beat})

        feeds = {kind.name: self._feed(kinds.verbatim(kind)) for kind in _KINDS}
        self._follower = Follower(name, ids, feeds, pace, introduced=introduced, beaten=beaten)

    async def run(self, read_config: Callable[[], EtcdConfig]) -> None:
        """See Member."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._place.leases.run(), name=f"leases of {self._name}")
            tasks.create_task(self._look_after(), name=f"canaries of {self._name}")
            for reconciler in self.reconcilers:
                tasks.create_task(reconciler.run(), name=f"reconcile {reconciler.table.name}")
            await self._follow(read_config)

    async def leave_services(self) -> None:
        """See Member."""
        await self._leaving(self._etcd.delete_prefix(self._prefix(kinds.SERVICES).encode()))

    async def leave(self) -> None:
        """See Member."""
        await self._leaving(self._place.leases.revoke())
        self._ids.release(self._name)

    def status(self) -> Remote:
        """How it goes, and whether it can be written."""
        said = self._follower.status()
        for reconciler in self.reconcilers:
            failure = reconciler.target_failure or next(iter(reconciler.failures.values()), None)
            if failure is not None:
                error = f"cannot be copied: {failure.error}"
                return replace(said, state=RemoteState.FAILED, last_error=error)
        return said

    def bad_rows(self, kind: str) -> Iterator[RowFailure]:
        """See Member."""
        return self._follower.bad_rows(kind)

    async def _follow(self, read_config: Callable[[], EtcdConfig]) -> None:
        try:
            config = read_config()
        except UserError as error:
            self._follower.fail(str(error))
            await asyncio.Event().wait()  # the copy is kept
            return
        async with Etcd(config) as etcd:
            await self._follower.run(etcd)

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(kinds.HEARTBEAT_EVERY)
            with contextlib.suppress(EtcdError):  # the reconcilers say so
                await self._place.look_after_canaries()

    async def _leaving(self, step: Coroutine[Any, Any, object]) -> None:
        try:
            await step
        except EtcdError as error:
            log.warning("the copy of %s goes by itself in some minutes: %s", self._name, error)

    def _prefix(self, kind: Kind[Any, Any]) -> str:
        return kind.prefix(self._name, cached=True)

    def _feed(self, kind: Kind[str, bytes]) -> Feed[str, bytes]:
        table: Table[str, bytes] = Table(f"{kind.name} of {self._name}")
        writer = table.writer(self._name)
        prefix = self._prefix(kind)
        target = self._place.target(
            prefix,
            lambda key: f"{prefix}{key}".encode(),
            lambda key: key.decode(errors="replace").removeprefix(prefix),
        )
        canary = kind.canary(self._name, cached=True)
        self.reconcilers.append(
            self._place.with_canary(canary, table, target, lambda _, value: value)
        )
        return Feed(kind, writer, Health(table.name))

    def _single(self, prefix: str) -> Writer[str, bytes]:
        """What there is one key of for each cluster."""
        table: Table[str, bytes] = Table(f"{prefix}{self._name}")
        writer = table.writer(self._name)

        def decode(key: bytes) -> str:
            if key.decode(errors="replace") != f"{prefix}{self._name}":
                raise BadRowError("it is another cluster's")
            return self._name

        target = self._place.target(prefix, lambda name: f"{prefix}{name}".encode(), decode)
        self.reconcilers.append(Reconciler(table, target, lambda _, value: value))
        return writer

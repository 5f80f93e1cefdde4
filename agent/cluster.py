"""One cluster as an agent reads it: into its tables, and into a cache that outlives it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any, Final, TypeVar

from clustermesh import kinds
from clustermesh.errors import BadRowError, UserError
from clustermesh.etcd import Etcd, EtcdConfig, Health
from clustermesh.follow import ClusterIds, Feed, Follower, Pace, RefusedError
from clustermesh.kinds import Kind, Owner
from clustermesh.model import ClusterConfig, ClusterName, IPNetwork
from clustermesh.state import Table
from clustermesh.status import Remote, RowFailure

from .cache import Cache, Snapshot
from .rows import Reserved
from .tables import Read

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 0.2  # seconds
_SAVE_EVERY: Final = 30.0


class ClusterReader:
    """
    Follows one cluster, ours or another, into the agent's tables.

    Losing the connection, or the reader being stopped, withdraws nothing; only `leave` does.
    """

    def __init__(
        self,
        name: ClusterName,
        ids: ClusterIds,
        tables: Read,
        cache: Cache,
        pace: Pace = Pace(),  # noqa: B008 - it cannot change
        *,
        through: Etcd | None = None,
        save_every: float = _SAVE_EVERY,
    ) -> None:
        """
        Open the cluster's writers, and put into them what it said last, if that is known.

        Args:
            through: the etcd to read in place of the cluster's own: it has a copy.
            save_every: seconds.
        """
        self.name: Final = name
        self._ids = ids
        self._cache = cache
        self._through = through
        self._save_every = save_every
        self._saved = 0
        services = kinds.LOCAL_SERVICES if name == ids.own else kinds.SERVICES
        self.feeds: Final[Mapping[str, Feed[Any, Any]]] = {
            "nodes": self._feed(kinds.NODES, tables.nodes),
            "services": self._feed(services, tables.services),
            "identities": self._feed(kinds.IDENTITIES, tables.identities),
            "endpoints": self._feed(kinds.ENDPOINTS, tables.endpoints),
        }
        self._follower = Follower(name, ids, self.feeds, pace)
        # The way to an etcd must not be led through the pods of another cluster.
        self._reserved = tables.reserved.writer(f"etcd of {name}")
        self._reserved.list_done()
        self._restore()

    async def run(self, read_config: Callable[[], EtcdConfig]) -> None:
        """
        Follow the cluster until cancelled.

        Args:
            read_config: how its etcd is reached. May raise UserError: then nothing else is tried.
        """
        try:
            config = read_config()
        except UserError as error:
            self._follower.fail(str(error))
            return
        self._reserved.replace(await self._reservations(config))
        saver = asyncio.create_task(self._save_now_and_then(), name=f"cache {self.name}")
        try:
            if self._through is not None:
                await self._follower.run(self._through)
            else:
                async with Etcd(config) as etcd:
                    await self._follower.run(etcd)
        finally:
            saver.cancel()
            await asyncio.gather(saver, return_exceptions=True)

    async def _reservations(self, config: EtcdConfig) -> dict[IPNetwork, Reserved]:
        row = Reserved(f"the etcd of {self.name}", self.name)
        hosts = [endpoint.host for endpoint in config.endpoints]
        return {ip_network(ip): row for host in hosts for ip in await _resolve(host)}

    async def nodes_known(self) -> None:
        """Wait until the cluster's nodes are known, if only from the last time."""
        nodes = self.feeds["nodes"].writer
        while not (nodes.listed or nodes.own):  # noqa: ASYNC110 - no watch tells of an empty list
            await asyncio.sleep(_LOOK_EVERY)

    async def leave_services(self) -> None:
        """The cluster is about to leave: nothing new shall be sent to its backends."""
        self.feeds["services"].writer.replace({})

    async def leave(self) -> None:
        """The cluster is not connected any more: withdraw all it said."""
        for feed in self.feeds.values():
            feed.writer.close()
        self._reserved.close()
        self._ids.release(self.name)
        self._cache.forget(self.name)

    def status(self) -> Remote:
        """How it goes."""
        return self._follower.status()

    def bad_rows(self, kind: str) -> Iterator[RowFailure]:
        """The rows that are skipped at present."""
        return self._follower.bad_rows(kind)

    def _feed(self, kind: Kind[K, V], table: Table[K, V]) -> Feed[K, V]:
        return Feed(kind, table.writer(self.name), Health(f"{self.name} {kind.name}"))

    def _restore(self) -> None:
        snapshot = self._cache.load(self.name)
        if snapshot is None:
            return
        config = ClusterConfig(snapshot.id, self._ids.max_connected_clusters)
        try:
            self._ids.claim(self.name, config)
        except RefusedError as error:
            log.warning("cluster %s: its last known state is not used: %s", self.name, error)
            return
        owner = Owner(self.name, config.id, config.max_connected_clusters)
        for name, feed in self.feeds.items():
            _restore(feed, owner, snapshot.rows.get(name, ()))

    async def _save_now_and_then(self) -> None:
        """Keep the cache fresh: soon after the first listing, then at intervals, and at the end."""
        try:
            while True:
                await asyncio.sleep(self._save_every if self._saved else 1)
                await asyncio.to_thread(self._save)
        finally:
            self._save()

    def _save(self) -> None:
        config = self._follower.config
        received = sum(feed.health.rows for feed in self.feeds.values())
        if config is None or received == self._saved:
            return
        if all(feed.writer.listed for feed in self.feeds.values()):
            rows = {name: _encoded(feed) for name, feed in self.feeds.items()}
            self._cache.save(self.name, Snapshot(config.id, rows))
            self._saved = received


def _encoded(feed: Feed[Any, Any]) -> list[tuple[str, bytes]]:
    rows = tuple(feed.writer.own.items())
    return [(feed.kind.key(key), feed.kind.encode(row)) for key, row in rows]


def _restore(feed: Feed[Any, Any], owner: Owner, rows: Iterable[tuple[str, bytes]]) -> None:
    for text, value in rows:
        try:
            key = feed.kind.parse_key(text)
            feed.writer.put(key, feed.kind.decode(owner, key, value))
        except BadRowError as error:
            log.warning("cache: %s: skipped %s: %s", owner.cluster, text, error)


async def _resolve(host: str) -> set[str]:
    """The addresses of a host, which may be one; none while its name does not resolve."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return set()
    return {str(address[0]).partition("%")[0] for *_, address in found}

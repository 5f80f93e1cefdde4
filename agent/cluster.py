"""One cluster as it is read from an etcd: introduced, believed or refused, and then followed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final, Generic, TypeVar

from clustermesh import kinds
from clustermesh.errors import BadRowError, UserError
from clustermesh.etcd import Etcd, EtcdConfig, EtcdError, Health, etcd_source
from clustermesh.kinds import Kind, Owner
from clustermesh.model import ClusterConfig, ClusterId, ClusterName, IPNetwork
from clustermesh.state import Table, Writer, replicate
from clustermesh.status import Remote, RemoteState, RowFailure

from .cache import Cache, Snapshot
from .rows import Reserved
from .tables import Read

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = logging.getLogger(__name__)

_CANARY_EVERY: Final = 0.2  # seconds
_NODES_WITHIN: Final = 1.0  # seconds for which the services of a cluster wait for its nodes
_RETRY_MIN: Final = 0.25  # seconds
_RETRY_MAX: Final = 15.0
_ABSENT_MAX: Final = 1.0  # while a cluster has not introduced itself: it is probably starting
NO_HEARTBEAT: Final = (
    f"no heartbeat for {kinds.HEARTBEAT_LOST:.0f} s: is its apiserver running? "
    "Its last known state stays in use"
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a reader does things, in seconds."""

    look_every: float = 10.0  # at cluster-config and heartbeat
    heartbeat_lost: float = kinds.HEARTBEAT_LOST
    save_every: float = 30.0
    drain: float = 2.0  # between the services of a cluster that leaves, and the routes to its pods


class AbsentError(Exception):
    """There is no such cluster where we look, at least not yet."""


class RefusedError(Exception):
    """A cluster is not who it should be; the message says why."""


class ClusterIds:
    """Which cluster has which id. The first that has one keeps it while it is connected."""

    def __init__(self, own: ClusterName, own_id: ClusterId, max_connected_clusters: int) -> None:
        self.own: Final = own
        self.max_connected_clusters: Final = max_connected_clusters
        self._names: dict[ClusterId, ClusterName] = {own_id: own}

    def claim(self, cluster: ClusterName, config: ClusterConfig) -> None:
        """
        Let `cluster` have the id of its config.

        Raises:
            RefusedError: another one has it, or the clusters disagree about how many there can be.
        """
        if config.max_connected_clusters != self.max_connected_clusters:
            raise RefusedError(
                f"it allows {config.max_connected_clusters} clusters, and we "
                f"{self.max_connected_clusters}: --max-connected-clusters must be the same in all"
            )
        holder = self._names.get(config.id, cluster)
        if holder != cluster:
            whose = "our own" if holder == self.own else f"that of {holder}"
            raise RefusedError(f"its cluster id {config.id} is {whose}: give it another one")
        if cluster == self.own and config.id not in self._names:
            raise RefusedError(f"our own etcd says that our cluster id is {config.id}")
        self.release(cluster)
        self._names[config.id] = cluster

    def release(self, cluster: ClusterName) -> None:
        """`cluster` has left."""
        if cluster != self.own:
            self._names = {i: name for i, name in self._names.items() if name != cluster}


@dataclass
class _Feed(Generic[K, V]):
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
                await asyncio.sleep(_CANARY_EVERY)

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

    def encoded(self) -> list[tuple[str, bytes]]:
        rows = tuple(self.writer.own.items())
        return [(self.kind.key(key), self.kind.encode(row)) for key, row in rows]

    def restore(self, owner: Owner, rows: Iterator[tuple[str, bytes]]) -> None:
        for text, value in rows:
            try:
                key = self.kind.parse_key(text)
                self.writer.put(key, self.kind.decode(owner, key, value))
            except BadRowError as error:
                log.warning("cache: %s: skipped %s: %s", owner.cluster, text, error)


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
        pace: Pace = Pace(),
    ) -> None:
        """Open the cluster's writers, and put into them what it said last, if that is known."""
        self.name: Final = name
        self._ids = ids
        self._cache = cache
        self._pace = pace
        self._config: ClusterConfig | None = None
        self._state = RemoteState.CONNECTING
        self._since = time.monotonic()
        self._last_error: str | None = None
        self._last_beat: bytes | None = None  # the one after which there was none for too long
        self._saved = 0
        services = kinds.LOCAL_SERVICES if name == ids.own else kinds.SERVICES
        self.feeds: Final[dict[str, _Feed[Any, Any]]] = {
            "nodes": self._feed(kinds.NODES, tables.nodes),
            "services": self._feed(services, tables.services),
            "identities": self._feed(kinds.IDENTITIES, tables.identities),
            "endpoints": self._feed(kinds.ENDPOINTS, tables.endpoints),
        }
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
            self._enter(RemoteState.FAILED, str(error))
            return
        self._reserved.replace(await self._reservations(config))
        saver = asyncio.create_task(self._save_now_and_then(), name=f"cache {self.name}")
        try:
            async with Etcd(config) as etcd:
                await self._follow(etcd)
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
            await asyncio.sleep(_CANARY_EVERY)

    def leave_services(self) -> None:
        """The cluster is about to leave: nothing new shall be sent to its backends."""
        self.feeds["services"].writer.replace({})

    def leave(self) -> None:
        """The cluster is not connected any more: withdraw all it said."""
        for feed in self.feeds.values():
            feed.writer.close()
        self._reserved.close()
        self._ids.release(self.name)
        self._cache.forget(self.name)

    def status(self) -> Remote:
        """How it goes."""
        state, error = self._state, self._last_error
        since = time.monotonic() - self._since
        skipped = [f"{key}: {why}" for h in self._healths() for key, why in h.skipped.items()]
        down = next((h for h in self._healths() if h.listings and not h.connected), None)
        if state in {RemoteState.READY, RemoteState.LISTING} and down is not None:
            state, error, since = RemoteState.FAILED, down.last_error, time.time() - down.since
        elif state is RemoteState.LISTING and all(f.writer.listed for f in self.feeds.values()):
            state = RemoteState.READY
        return Remote(
            cluster=self.name,
            id=self._config.id if self._config else None,
            state=state,
            since=round(since, 1),
            last_error=error or next((h.last_error for h in self._healths() if h.last_error), None),
            **{name: len(feed.writer.own) for name, feed in self.feeds.items()},
            bad_rows=len(skipped),
            last_bad_row=skipped[-1] if skipped else None,
        )

    def bad_rows(self, kind: str) -> Iterator[RowFailure]:
        """The rows that are skipped at present."""
        for key, error in self.feeds[kind].health.skipped.items():
            yield RowFailure(key=key, error=error, origin=self.name)

    def _feed(self, kind: Kind[K, V], table: Table[K, V]) -> _Feed[K, V]:
        return _Feed(kind, table.writer(self.name), Health(f"{self.name} {kind.name}"))

    def _healths(self) -> Iterator[Health]:
        return (feed.health for feed in self.feeds.values())

    async def _follow(self, etcd: Etcd) -> None:
        wait = _RETRY_MIN
        while True:
            try:
                await self._await_heart(etcd)
                config = await self._introduce(etcd)
                self._ids.claim(self.name, config)
            except AbsentError as error:
                self._enter(RemoteState.CONNECTING, str(error))
                wait = min(wait, _ABSENT_MAX)
            except RefusedError as error:
                self._enter(RemoteState.REFUSED, str(error))
                wait = self._pace.look_every
            except EtcdError as error:
                self._enter(RemoteState.FAILED, str(error))
            else:
                wait = _RETRY_MIN
                self._config = config
                self._enter(RemoteState.LISTING, None)
                reason = await self._read(etcd, config)
                self._enter(RemoteState.CONNECTING, reason)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _RETRY_MAX)

    async def _await_heart(self, etcd: Etcd) -> None:
        """
        After the heart has stopped, wait until it beats again.

        An apiserver that is dead lets its keys expire one by one, and reading on would withdraw a
        cluster whose pods are alive. So its last known state is kept instead.
        """
        while self._last_beat is not None:
            beat = await etcd.get(kinds.HEARTBEAT.encode())
            if beat is not None and beat != self._last_beat:  # the last one expires some day
                self._last_beat = None
            else:
                self._enter(RemoteState.FAILED, NO_HEARTBEAT)
                await asyncio.sleep(self._pace.look_every)

    async def _introduce(self, etcd: Etcd) -> ClusterConfig:
        value = await etcd.get(kinds.cluster_config_key(self.name).encode())
        if value is None:
            raise AbsentError(
                f"its etcd knows no cluster {self.name!r}: is it still starting, or is the file in "
                "--clusters-dir named after another one?"
            )
        try:
            return kinds.decode_cluster_config(value)
        except BadRowError as error:
            raise RefusedError(f"its cluster-config makes no sense: {error}") from None

    async def _read(self, etcd: Etcd, config: ClusterConfig) -> str:
        """Follow every kind, until the cluster changes its config or its heart stops; say which."""
        owner = Owner(self.name, config.id, config.max_connected_clusters)
        async with asyncio.TaskGroup() as tasks:
            readers = [
                tasks.create_task(
                    self._read_kind(name, etcd, owner, config), name=f"{self.name} {name}"
                )
                for name in self.feeds
            ]
            reason = await self._until_doubtful(etcd, config)
            for reader in readers:
                reader.cancel()
        return reason

    async def _read_kind(self, name: str, etcd: Etcd, owner: Owner, config: ClusterConfig) -> None:
        if name == "services":
            # A backend is of use when there is a way to it: so the nodes go first, if they come.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NODES_WITHIN):
                    await self._listed("nodes", "endpoints")
        await self.feeds[name].run(etcd, owner, config)

    async def _listed(self, *names: str) -> None:
        writers = [self.feeds[name].writer for name in names]
        while not all(writer.listed for writer in writers):  # noqa: ASYNC110
            await asyncio.sleep(_NODES_WITHIN / 100)

    async def _until_doubtful(self, etcd: Etcd, config: ClusterConfig) -> str:
        beat, beat_at = b"", time.monotonic()
        while True:
            await asyncio.sleep(self._pace.look_every)
            try:
                if await self._introduce(etcd) != config:
                    return "its cluster-config has changed"
                seen = await etcd.get(kinds.HEARTBEAT.encode())
            except (AbsentError, RefusedError):
                continue  # it is put back within seconds, or the heart stops
            except EtcdError:
                continue  # the sources know, and say so
            if seen is not None and seen != beat:
                beat, beat_at = seen, time.monotonic()
            elif time.monotonic() - beat_at > self._pace.heartbeat_lost:
                self._last_beat = beat
                return NO_HEARTBEAT

    def _enter(self, state: RemoteState, error: str | None) -> None:
        if error and error != self._last_error:
            log.warning("cluster %s: %s: %s", self.name, state, error)
        if state is not self._state:
            self._since = time.monotonic()
        self._state, self._last_error = state, error

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
            feed.restore(owner, iter(snapshot.rows.get(name, ())))

    async def _save_now_and_then(self) -> None:
        """Keep the cache fresh: soon after the first listing, then at intervals, and at the end."""
        try:
            while True:
                await asyncio.sleep(self._pace.save_every if self._saved else 1)
                await asyncio.to_thread(self._save)
        finally:
            self._save()

    def _save(self) -> None:
        received = sum(health.rows for health in self._healths())
        if self._config is None or received == self._saved:
            return
        if all(feed.writer.listed for feed in self.feeds.values()):
            rows = {name: feed.encoded() for name, feed in self.feeds.items()}
            self._cache.save(self.name, Snapshot(self._config.id, rows))
            self._saved = received


async def _resolve(host: str) -> set[str]:
    """The addresses of a host, which may be one; none while its name does not resolve."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return set()
    return {str(address[0]).partition("%")[0] for *_, address in found}

"""One cluster as it is read from an etcd: introduced, believed or refused, and then followed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from clustermesh import kinds
from clustermesh.errors import BadRowError
from clustermesh.etcd import Etcd, EtcdError, Health
from clustermesh.kinds import Owner
from clustermesh.model import ClusterConfig, ClusterName
from clustermesh.status import Remote, RemoteState, RowFailure

from .feed import Feed
from .ids import ClusterIds, RefusedError

log = logging.getLogger(__name__)

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


class AbsentError(Exception):
    """There is no such cluster where we look, at least not yet."""


class Follower:
    """
    Follows one cluster, ours or another, into the tables of its feeds.

    Losing the connection, or being stopped, withdraws nothing.
    """

    def __init__(
        self,
        name: ClusterName,
        ids: ClusterIds,
        feeds: Mapping[str, Feed[Any, Any]],
        pace: Pace = Pace(),
        *,
        introduced: Callable[[ClusterConfig], None] = lambda _: None,
        beaten: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """
        Args:
            feeds: nodes, services, identities and endpoints.
            introduced: is told who the cluster is, whenever that is believed.
            beaten: is told of each new heartbeat.
        """
        self.name: Final = name
        self.feeds: Final = feeds
        self.config: ClusterConfig | None = None  # who it is, once that was believed
        self._ids = ids
        self._pace = pace
        self._introduced = introduced
        self._beaten = beaten
        self._state = RemoteState.CONNECTING
        self._since = time.monotonic()
        self._last_error: str | None = None
        self._last_beat: bytes | None = None  # the one after which there was none for too long

    def fail(self, error: str) -> None:
        """The cluster cannot even be looked for."""
        self._enter(RemoteState.FAILED, error)

    async def run(self, etcd: Etcd) -> None:
        """Follow the cluster until cancelled."""
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
                self.config = config
                self._introduced(config)
                self._enter(RemoteState.LISTING, None)
                reason = await self._read(etcd, config)
                self._enter(RemoteState.CONNECTING, reason)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _RETRY_MAX)

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
            id=self.config.id if self.config else None,
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

    def _healths(self) -> Iterator[Health]:
        return (feed.health for feed in self.feeds.values())

    async def _await_heart(self, etcd: Etcd) -> None:
        """
        After the heart has stopped, wait until it beats again.

        An apiserver that is dead lets its keys expire one by one, and reading on would withdraw a
        cluster whose pods are alive. So its last known state is kept instead.
        """
        while self._last_beat is not None:
            beat = await self._heartbeat(etcd)
            if beat is not None and beat != self._last_beat:  # the last one expires some day
                self._last_beat = None
            else:
                self._enter(RemoteState.FAILED, NO_HEARTBEAT)
                await asyncio.sleep(self._pace.look_every)

    async def _heartbeat(self, etcd: Etcd) -> bytes | None:
        cached = self.config is not None and self.config.cached
        return await etcd.get(kinds.heartbeat_key(self.name, cached=cached).encode())

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
                seen = await self._heartbeat(etcd)
            except (AbsentError, RefusedError):
                continue  # it is put back within seconds, or the heart stops
            except EtcdError:
                continue  # the sources know, and say so
            if seen is not None and seen != beat:
                beat, beat_at = seen, time.monotonic()
                self._beaten(seen)
            elif time.monotonic() - beat_at > self._pace.heartbeat_lost:
                self._last_beat = beat
                return NO_HEARTBEAT

    def _enter(self, state: RemoteState, error: str | None) -> None:
        if error and error != self._last_error:
            log.warning("cluster %s: %s: %s", self.name, state, error)
        if state is not self._state:
            self._since = time.monotonic()
        self._state, self._last_error = state, error

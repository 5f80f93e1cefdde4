from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Final

from clustermesh.backoff import Backoff

from .client import Etcd
from .errors import EtcdError, LeaseLostError

log = logging.getLogger(__name__)

MAX_KEYS: Final = 1_000
"""Keys to a lease: etcd's Put slows down with the keys on its lease."""


class Leases:
    """
    Leases that keys hang on, so that what a cluster has published goes away some time after it.

    When a lease is lost, because nobody could renew it in time or the server was replaced, etcd has
    deleted its keys. The target that wrote them sees that like any other tampering, and writes them
    again; here it is only made sure that they then get a new lease.
    """

    def __init__(self, etcd: Etcd, ttl: int = 900) -> None:
        """
        Args:
            ttl: seconds that keys outlive the last renewal. They are renewed three times as often.
        """
        self._etcd = etcd
        self._ttl = ttl
        self._lease_of: dict[bytes, int] = {}
        self._keys: dict[int, set[bytes]] = {}
        self._has_adopted = False  # since the last renewal

    @property
    def ids(self) -> tuple[int, ...]:
        """The leases that are kept."""
        return tuple(self._keys)

    async def assign(self, keys: Collection[bytes]) -> Mapping[bytes, int]:
        """
        Give each key a lease: the one that it has, or one with room, or a new one.

        Raises:
            EtcdError: a new one could not be had.
        """
        # Meanwhile others may take the room, and leases may be lost: hence the loop.
        while missing := [key for key in keys if key not in self._lease_of]:
            if not self._room:
                self._keys[await self._etcd.grant_lease(self._ttl)] = set()
            newest = next(reversed(self._keys))
            for key in missing[: self._room]:
                self.adopt(key, newest)
        return {key: self._lease_of[key] for key in keys}

    def adopt(self, key: bytes, lease: int) -> None:
        """Take over a key that hangs on `lease`, as an earlier process left it."""
        if self._lease_of.get(key) == lease:
            return
        self.release(key)
        self._has_adopted |= lease not in self._keys
        self._keys.setdefault(lease, set()).add(key)
        self._lease_of[key] = lease

    async def renew_adopted(self) -> None:
        """Renew, if leases were taken over since the last time: they may be near their end."""
        if self._has_adopted:
            await self.renew()

    async def put(self, key: bytes, value: bytes) -> None:
        """
        Set a key that hangs on one of the leases.

        Raises:
            LeaseLostError: its lease is lost, and with it whatever else hung on it. The next call
                gets a new one.
            EtcdError: something else.
        """
        leases = await self.assign([key])
        try:
            await self._etcd.put(key, value, leases[key])
        except LeaseLostError:
            await self.renew()  # finds out which ones
            raise

    def release(self, key: bytes) -> None:
        """`key` is gone. A lease without keys is not renewed any more, and so ends."""
        lease = self._lease_of.pop(key, None)
        if lease is not None:
            keys = self._keys[lease]
            keys.discard(key)
            if not keys:
                del self._keys[lease]

    async def renew(self) -> None:
        """Renew all leases, and forget those that are lost."""
        ttls = await self._etcd.renew_leases(self.ids)
        self._has_adopted = not ttls.keys() >= self._keys.keys()
        for lease, ttl in ttls.items():
            keys = self._keys.get(lease)
            if ttl <= 0 and keys is not None:
                log.warning("the lease of %d keys is lost: they are written again", len(keys))
                del self._keys[lease]
                for key in keys:
                    del self._lease_of[key]

    async def revoke(self) -> None:
        """
        Give all leases back: everything that hangs on them goes at once.

        Raises:
            EtcdError: some are left. As nobody renews them any more, they end by themselves.
        """
        leases = self.ids
        self._lease_of.clear()
        self._keys.clear()
        self._has_adopted = False
        for lease in leases:
            await self._etcd.revoke_lease(lease)

    async def run(self) -> None:
        """Keep the leases until cancelled. Stopping leaves the keys there for their TTL."""
        backoff = Backoff(most=self._ttl / 10)
        wait = self._ttl / 3
        while True:
            await asyncio.sleep(wait)
            try:
                await self.renew()
            except EtcdError as error:
                wait = backoff.next()
                log.warning("%s; again in %.1f s", error, wait)
            else:
                backoff.reset()
                wait = self._ttl / 3

    @property
    def _room(self) -> int:
        """How many more keys the newest lease takes. Older ones were full."""
        newest = next(reversed(self._keys), None)
        return 0 if newest is None else max(0, MAX_KEYS - len(self._keys[newest]))

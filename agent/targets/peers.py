"""
The peers of our WireGuard devices, and the devices themselves.

A peer that roams, or sits behind a NAT, is answered where its last packet came from: WireGuard
learns that endpoint, and it is left alone until the one that was configured changes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Final

from agent.kernel.netlink import Netlink, device_index
from agent.kernel.wireguard.driver import Device, Driver, PeerChange, PeerConfig, PeerState
from agent.lanes import LANES, Lane, lane_of
from agent.rows import Peer, PeerKey, UdpAddress
from clustermesh.model import IPAddress

_ALIVE: Final = 300.0
"""Seconds since a handshake for which an endpoint counts as learned: two are 120 to 180 apart."""

_MTU: Final = 1420  # of a device, until it is known better


def peer_config(key: PeerKey, peer: Peer) -> PeerConfig:
    """What `peer` is to its device."""
    del key
    return PeerConfig(peer.endpoint, peer.allowed_ips, peer.keepalive)


class PeerTarget:
    """
    The peers of all our devices, which are made when they get their first.

    A prefix that goes from one peer to another does so at once, and no other peer is touched.
    """

    def __init__(
        self,
        driver: Driver,
        netlink: Netlink,
        *,
        port: int,
        private_key: Callable[[int], bytes],
        wanted: Callable[[PeerKey], Peer | None],
    ) -> None:
        """
        Args:
            port: the first of those that devices listen on.
            private_key: our key of a kind (0 even, 1 odd). Raises KeyError: there is none.
            wanted: the peer as it should be.
        """
        self._driver = driver
        self._netlink = netlink
        self._port = port
        self._private_key = private_key
        self._wanted = wanted
        self.mtu = _MTU
        self._configured: dict[PeerKey, UdpAddress] = {}

    async def actual(self) -> Mapping[PeerKey, PeerConfig]:
        """The peers that are there. Devices that are there are made as they should be."""
        found: dict[PeerKey, PeerConfig] = {}
        for device, state in (await self.read()).items():
            if self._has_key(lane_of(device)):
                await self._ensure(device, state)
            for public_key, peer in state.peers.items():
                key = PeerKey(device, public_key)
                found[key] = self._without_learning(key, peer)
        for key in self._configured.keys() - found.keys():
            del self._configured[key]
        return found

    async def apply(
        self, puts: Mapping[PeerKey, PeerConfig], deletes: Collection[PeerKey]
    ) -> Mapping[PeerKey, OSError]:
        """Put and delete peers, device by device."""
        failed: dict[PeerKey, OSError] = {}
        there = await self.devices()
        for device in (lane.device for lane in LANES):
            mine = {key.public_key: config for key, config in puts.items() if key.device == device}
            gone = [k.public_key for k in deletes if k.device == device and device in there]
            if not mine and not gone:
                continue
            try:
                changes = await self._changes(device, mine, made=device not in there)
                errors = await self._driver.put_peers(device, changes, gone)
            except (OSError, KeyError) as error:
                reason = error if isinstance(error, OSError) else OSError(f"no key for {device}")
                errors = dict.fromkeys([*mine, *gone], reason)
            failed |= {PeerKey(device, key): error for key, error in errors.items()}
            for public_key, config in mine.items():
                if public_key not in errors and config.endpoint is not None:
                    self._configured[PeerKey(device, public_key)] = config.endpoint
            for public_key in gone:
                self._configured.pop(PeerKey(device, public_key), None)
        return failed

    async def drift(self) -> AsyncIterator[Collection[PeerKey] | None]:
        """WireGuard does not tell; the comparison now and then has to do."""
        return
        yield

    async def devices(self) -> set[str]:
        """Those of ours that are there."""
        return {lane.device for lane in LANES if device_index(lane.device)}

    async def is_whole(self, device: str) -> bool:
        """Whether a device is there, up and of the right MTU."""
        return await self._netlink.is_encrypted_device(device, self.mtu)

    async def read(self) -> Mapping[str, Device]:
        """Every device that is there, as it is."""
        return {device: await self._driver.read(device) for device in await self.devices()}

    async def tidy(self, in_use: Collection[str]) -> None:
        """Remove the devices that nobody is at the other end of."""
        for device in await self.devices() - set(in_use):
            await self._netlink.remove_device(device)

    async def _changes(
        self, device: str, wanted: Mapping[str, PeerConfig], *, made: bool
    ) -> Mapping[str, PeerChange]:
        """
        What has to be written for peers of a device, which is then as it should be.

        Args:
            made: it is not there yet, and has to be made.
        """
        if not wanted:
            return {}
        if made:
            await self._driver.create(device)
            self._forget(device)
        state = await self._driver.read(device)
        await self._ensure(device, state)
        return {
            key: self._news(PeerKey(device, key), config, state.peers.get(key))
            for key, config in wanted.items()
        }

    async def _ensure(self, device: str, state: Device) -> None:
        """Have a device that is there as it should be."""
        lane = lane_of(device)
        key, port = self._private_key(lane.own), lane.port(self._port)
        if (state.private_key, state.port) != (key, port):
            await self._driver.configure(device, key, port)
        await self._netlink.ensure_encrypted_device(device, self.mtu)

    def _forget(self, device: str) -> None:
        """A device has been made anew: nothing of it is configured."""
        for key in [key for key in self._configured if key.device == device]:
            del self._configured[key]

    def _has_key(self, lane: Lane) -> bool:
        try:
            self._private_key(lane.own)
        except KeyError:
            return False
        return True

    def _without_learning(self, key: PeerKey, state: PeerState) -> PeerConfig:
        """The peer as it was configured: a learned endpoint is no difference."""
        wanted = self._wanted(key)
        config = state.config
        if wanted is None or config.endpoint is None:
            return config
        if config.endpoint != wanted.endpoint:
            known = self._configured.get(key)
            if known not in {None, wanted.endpoint} or _is_silent(state):
                self._configured.pop(key, None)
                return config
        self._configured[key] = wanted.endpoint
        return PeerConfig(wanted.endpoint, config.allowed_ips, config.keepalive)

    def _news(self, key: PeerKey, config: PeerConfig, state: PeerState | None) -> PeerChange:
        """
        What to write: the endpoint only if it is another than the one configured last.

        And all prefixes anew only if the peer has one too many: meanwhile it has none.
        """
        endpoint = None if self._configured.get(key) == config.endpoint else config.endpoint
        has = state.config.allowed_ips if state else ()
        if set(has) <= set(config.allowed_ips):
            missing = tuple(ip for ip in config.allowed_ips if ip not in has)
            return PeerChange(endpoint, missing, config.keepalive)
        return PeerChange(endpoint, config.allowed_ips, config.keepalive, only=True)


def _is_silent(state: PeerState) -> bool:
    return time.time() - state.handshake_at > _ALIVE


def widest(addresses: Collection[IPAddress]) -> int:
    """The IP version whose header is the largest of those that these are reached with."""
    return max((address.version for address in addresses), default=4)

"""
Encryption between nodes of different clusters: keys, lanes and which of them is used.

    nodes ──PeerKeys──▶ keys ──────┐
    cidrs ─────────────────────────┼─peers──▶ peers ──────▶ WireGuard devices (targets/peers.py)
    OwnKeys ──────────▶ own_keys ──┘            │              │ who has answered
                                                └─paths─▶ paths ◀── sessions
                                                            └─▶ routes

How keys change without a lost packet is told in lanes.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.state import Reconciler, Watch
from clustermesh.status import EncryptionStatus

from .kernel.netlink import Netlink, device_index
from .kernel.wireguard.choice import choose
from .kernel.wireguard.driver import Device, Driver, PeerConfig, PeerState
from .lanes import LANES, Lane, parity
from .own import OwnNode
from .own_keys import OwnKeys
from .peer_keys import OVERLAP, PeerKeys
from .rows import NodeName, Peer, PeerKey, Session
from .rules.peers import all_have_moved
from .settings import AgentSettings
from .tables import Derived, Read
from .targets.peers import PeerTarget, peer_config, widest
from .targets.routes import encrypted_mtu

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 10.0  # seconds between looks at who has answered
_LOOK_OFTEN: Final = 0.25  # while there is a choice of lanes
_YOUNG: Final = 1.0
"""Seconds before a first session is used: both ends may have begun one at the same moment, and
while the second of them takes the place of the first, packets can be lost."""

_SETTLED: Final = 10.0
"""Seconds from when all peers have answered on the new lanes until the old ones go. The other end
has seen it work at the same moment, and moves as soon as it looks."""

_REQUEST: Final = "rotate"  # a file beside the keys: see `clustermesh encryption rotate`
_ASKED_EVERY: Final = 1.0  # seconds


class Encryption:
    """WireGuard on one node. Use `open`, then `run`."""

    def __init__(
        self,
        settings: AgentSettings,
        read: Read,
        derived: Derived,
        own: OwnNode,
        *,
        target: PeerTarget,
        driver: Driver,
        keys: OwnKeys,
    ) -> None:
        """Use `open` instead."""
        self._settings = settings
        self._read = read
        self._derived = derived
        self._own = own
        self._target = target
        self._driver = driver
        self._keys = keys
        self._own_keys = read.own_keys.writer("this node")
        self._own_keys.replace(keys.rows)
        self._peer_keys = read.keys.writer("nodes")
        self._sessions = read.sessions.writer("devices")
        self._devices: Mapping[str, Device] = {}
        self._answered_at: float | None = None  # when all had, monotonic seconds
        # Monotonic seconds. An agent that starts in the middle of a rotation waits anew: it cannot
        # know whether the key had been published.
        self._rotated_at = time.monotonic()
        self._failure = ""
        self.reconciler: Final[Reconciler[PeerKey, Peer, PeerConfig]] = Reconciler(
            derived.peers, self._target, peer_config, after_repair=self._tidy
        )

    @classmethod
    async def open(
        cls,
        settings: AgentSettings,
        read: Read,
        derived: Derived,
        own: OwnNode,
        netlink: Netlink,
    ) -> Encryption:
        """
        Have a key, and find out which WireGuard there is.

        Raises:
            UserError: there is none, or the key cannot be read.
        """
        keys = OwnKeys.open(keys_directory(settings), now=time.time())
        first = Lane(parity(keys.current.public), 0)
        driver = await choose(netlink, settings.encryption_sockets, first.device)
        target = PeerTarget(
            driver,
            netlink,
            port=settings.encryption_port,
            private_key=keys.private,
            wanted=derived.peers.first,
        )
        return cls(settings, read, derived, own, target=target, driver=driver, keys=keys)

    def close(self) -> None:
        """Let go. Devices and peers stay as they are."""
        self._driver.close()

    def underlay(self, mtu: int) -> None:
        """The MTU of the device towards other nodes, which is found out again and again."""
        reached = [peer.endpoint.ip for _, peer, _ in self.peers()]
        wanted = encrypted_mtu(mtu, widest(reached))
        if wanted != self._target.mtu:
            self._target.mtu = wanted
            self.reconciler.compare_soon()

    def device_gone(self) -> None:
        """Somebody may have removed a device of ours."""
        if self._derived.peers.keys() and self._missing():
            self.reconciler.compare_soon()

    async def run(self) -> None:
        """Keep peers as they should be until cancelled."""
        with contextlib.suppress(OSError):
            await self._look()
        adopted = {
            key: peer.config.allowed_ips
            for device in self._devices.values()
            for key, peer in device.peers.items()
        }
        keys = PeerKeys(self._read.nodes, self._peer_keys, adopted)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keys.run(), name="follow keys")
            tasks.create_task(self.reconciler.run(), name="reconcile peers")
            tasks.create_task(self._watch_sessions(), name="follow sessions")
            await self.reconciler.synced.wait()
            self._publish()
            tasks.create_task(self._rotate_when_due(), name="rotate")

    def seen(self, key: PeerKey) -> PeerState | None:
        """A peer as it was when its device was looked at last."""
        device = self._devices.get(key.device)
        return device.peers.get(key.public_key) if device else None

    def peers(self) -> Iterator[tuple[PeerKey, Peer, PeerState | None]]:
        """Every peer, as it should be and as it was seen last."""
        for key in tuple(self._derived.peers.keys()):
            peer = self._derived.peers.first(key)
            if peer is not None:
                yield key, peer, self.seen(key)

    def status(self) -> EncryptionStatus:
        """How it is. Never a private key."""
        nodes = {NodeName(peer.cluster, peer.node) for _, peer, _ in self.peers()}
        answering = {
            NodeName(peer.cluster, peer.node)
            for _, peer, state in self.peers()
            if state and state.handshake_at
        }
        return EncryptionStatus(
            type="wireguard",
            driver=self._driver.name,
            public_key=self._keys.current.public,
            previous_key=self._keys.previous.public if self._keys.previous else "",
            key_age=max(0.0, time.time() - self._keys.current.made_at),
            devices=sorted(self._devices),
            ports=sorted(device.port for device in self._devices.values()),
            peers=len(nodes),
            answered=len(answering),
            last_error=self._failure or None,
        )

    def _missing(self) -> bool:
        return any(
            device_index(device) is None
            for device in {key.device for key in self._derived.peers.keys()}
        )

    async def _tidy(self) -> None:
        used = {key.device for key in self._derived.peers.keys()}
        await self._target.tidy(used | {Lane(parity(self._keys.current.public), 0).device})

    def _publish(self) -> None:
        public = self._keys.current.public
        self._own.learn(msgspec.structs.replace(self._own.known, wireguard_public_key=public))

    async def _watch_sessions(self) -> None:
        """Look who has answered: often while it matters, and when peers come and go."""
        watch: Watch[PeerKey] = Watch(self._derived.peers)
        try:
            while True:
                try:
                    await self._look()
                except OSError as error:
                    log.warning("WireGuard does not say who has answered: %s", error)
                    self.reconciler.compare_soon()
                every = _LOOK_OFTEN if self._has_choice() else _LOOK_EVERY
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await anext(watch)
                        await asyncio.sleep(_LOOK_OFTEN)
        finally:
            watch.close()

    async def _look(self) -> None:
        self._devices = await self._target.read()
        now = time.time()
        answered = {}
        for device, found in self._devices.items():
            for public_key, peer in found.peers.items():
                key = PeerKey(device, public_key)
                old = not self._sessions.listed or key in self._sessions.own
                if peer.handshake_at and (old or now - peer.handshake_at > _YOUNG):
                    answered[key] = Session()
        self._sessions.replace(answered)
        if self._missing():
            self.reconciler.compare_soon()

    def _has_choice(self) -> bool:
        """Whether some node could be moved to a newer lane, once it has answered there."""
        waiting = {
            NodeName(peer.cluster, peer.node)
            for key, peer, _ in self.peers()
            if peer.age == 0 and key not in self._sessions.own
        }
        older = {NodeName(peer.cluster, peer.node) for _, peer, _ in self.peers() if peer.age}
        return bool(waiting & older)

    async def _rotate_when_due(self) -> None:
        request = keys_directory(self._settings) / _REQUEST
        while True:
            try:
                if self._keys.previous is not None:
                    await self._retire_when_settled()
                elif request.exists() or self._is_old():
                    await self._rotate()
                    request.unlink(missing_ok=True)
                self._failure = ""
            except OSError as error:
                if str(error) != self._failure:
                    log.warning("the WireGuard key: %s", error)
                self._failure = str(error)
            await asyncio.sleep(_ASKED_EVERY)

    def _is_old(self) -> bool:
        limit = self._settings.encryption_key_age * 3600
        return bool(limit) and time.time() - self._keys.current.made_at > limit

    async def _rotate(self) -> None:
        self._keys.rotate(now=time.time())
        self._rotated_at = time.monotonic()
        self._answered_at = None
        self._own_keys.replace(self._keys.rows)

    async def _retire_when_settled(self) -> None:
        """
        Publish the new key once its devices are there, and retire the old one when all have moved.

        Not before everybody can be answered on the new lanes may anybody come to know of them.
        """
        self._publish_when_open()
        now = time.monotonic()
        peers = {key: peer for key, peer, _ in self.peers()}
        if self._answered_at is None and all_have_moved(peers, self._sessions.own):
            self._answered_at = now
        moved = self._answered_at is not None and now - self._answered_at > _SETTLED
        if moved or now - self._rotated_at > OVERLAP:
            self._keys.retire()
            self._own_keys.replace(self._keys.rows)
            await asyncio.sleep(_ASKED_EVERY)  # the peers of the old key go
            self.reconciler.compare_soon()  # and then their devices

    def _publish_when_open(self) -> None:
        new = self._new_lanes()
        there = {
            PeerKey(name, key) for name, device in self._devices.items() for key in device.peers
        }
        everybody = {NodeName(peer.cluster, peer.node) for _, peer, _ in self.peers()}
        reached = {NodeName(p.cluster, p.node) for key, p, _ in self.peers() if key in new}
        if new <= there and reached == everybody:  # the rule may not have run yet
            self._publish()

    def _new_lanes(self) -> set[PeerKey]:
        """Those of our current key."""
        own = parity(self._keys.current.public)
        return {
            key
            for key in self._derived.peers.keys()
            if any(lane.device == key.device and lane.own == own for lane in LANES)
        }


def keys_directory(settings: AgentSettings) -> Path:
    """Where the keys of this node are kept."""
    return settings.state_dir / settings.cluster_name / settings.node_name

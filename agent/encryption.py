"""
Encryption between nodes of different clusters: keys, lanes and which of them is used.

    nodes ──PeerKeys──▶ keys ──────┐
    cidrs ─────────────────────────┼─peers──▶ peers ──────▶ WireGuard devices (targets/peers.py)
    Rotation ─────────▶ own_keys ──┘            │                │ who answers (sessions.py)
                                                └─lanes─▶ lanes ◀┘
                                                            └─▶ routes

How keys change without a lost packet is told in lanes.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from clustermesh.model import IPNetwork, Node
from clustermesh.state import Reconciler, Table
from clustermesh.status import EncryptionStatus

from .kernel.netlink import Netlink
from .kernel.wireguard.choice import choose
from .kernel.wireguard.driver import Driver, PeerConfig, PeerState
from .lanes import Lane, parity
from .own import OwnNode
from .own_keys import OwnKeys
from .peer_keys import PeerKeys
from .rotation import Rotation
from .rows import NodeName, Peer, PeerKey
from .rules.peers import left_behind
from .sessions import Sessions
from .settings import AgentSettings
from .tables import Derived, Read
from .targets.peers import PeerTarget, peer_config, widest
from .targets.routes import encrypted_mtu

_REQUEST: Final = "rotate"  # a file beside the keys: see `clustermesh encryption rotate`


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
        self._read = read
        self._peers = derived.peers
        self._target = target
        self._driver = driver
        self._keys = keys
        self._peer_keys = read.keys.writer("nodes")
        self.reconciler: Final[Reconciler[PeerKey, Peer, PeerConfig]] = Reconciler(
            derived.peers, self._target, peer_config, after_repair=self._tidy
        )
        self._sessions = Sessions(
            target.read,
            derived.peers,
            read.sessions.writer("devices"),
            differs=self.reconciler.compare_soon,
        )
        self._rotation = Rotation(
            keys,
            read.own_keys.writer("this node"),
            derived.peers,
            self._sessions,
            own=own,
            published=partial(_published, read.nodes, settings),
            request=keys_directory(settings) / _REQUEST,
            max_age=settings.encryption_key_age * 3600,
            retired=self.reconciler.compare_soon,
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
        reached = [peer.endpoint.ip for _, peer in self._all_peers()]
        wanted = encrypted_mtu(mtu, widest(reached))
        if wanted != self._target.mtu:
            self._target.mtu = wanted
            self.reconciler.compare_soon()

    async def look_at_devices(self) -> None:
        """Somebody may have removed a device of ours, or taken it down."""
        for device in sorted({key.device for key in self._peers.keys()}):
            if not await self._target.is_whole(device):
                self.reconciler.compare_soon()

    async def run(self) -> None:
        """Keep peers as they should be until cancelled."""
        with contextlib.suppress(OSError):
            await self._sessions.look()
        keys = PeerKeys(self._read.nodes, self._peer_keys, self._adopted(), self._behind)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keys.run(), name="follow keys")
            tasks.create_task(self.reconciler.run(), name="reconcile peers")
            tasks.create_task(self._sessions.run(), name="follow sessions")
            await self.reconciler.synced.wait()
            tasks.create_task(self._rotation.run(), name="rotate")

    def seen(self, key: PeerKey) -> PeerState | None:
        """A peer as it was when its device was looked at last."""
        return self._sessions.seen(key)

    def status(self) -> EncryptionStatus:
        """How it is. Never a private key. Costs the same for any number of peers."""
        devices = self._sessions.devices
        return EncryptionStatus(
            type="wireguard",
            driver=self._driver.name,
            public_key=self._keys.current.public,
            previous_key=self._keys.previous.public if self._keys.previous else "",
            key_age=max(0.0, time.time() - self._keys.current.made_at),
            waits_for=self._rotation.waits_for,
            devices=sorted(devices),
            ports=sorted(device.port for device in devices.values()),
            peers=self._sessions.nodes,
            answered=self._sessions.nodes_answered,
            last_error=self._rotation.failure or None,
        )

    def _all_peers(self) -> Iterator[tuple[PeerKey, Peer]]:
        return ((key, peer) for key in self._peers.keys() if (peer := self._peers.first(key)))

    def _behind(self) -> Collection[NodeName]:
        return left_behind(dict(self._all_peers()), self._sessions.working)

    def _adopted(self) -> Mapping[str, tuple[IPNetwork, ...]]:
        """What our devices know already, by public key."""
        return {
            key: peer.config.allowed_ips
            for device in self._sessions.devices.values()
            for key, peer in device.peers.items()
        }

    async def _tidy(self) -> None:
        used = {key.device for key in self._peers.keys()}
        await self._target.tidy(used | {Lane(parity(self._keys.current.public), 0).device})


def keys_directory(settings: AgentSettings) -> Path:
    """Where the keys of this node are kept."""
    return settings.state_dir / settings.cluster_name / settings.node_name


def _published(nodes: Table[str, Node], settings: AgentSettings) -> str:
    """The key of this node that all others read, as far as it has been read back."""
    node = nodes.rows(settings.node_name).get(settings.cluster_name)
    return node.wireguard_public_key if node else ""

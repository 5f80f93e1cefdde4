"""Who answers on which lane, by what our devices say when they are looked at."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from clustermesh.state import Table, Watch, Writer

from .kernel.wireguard.driver import Device, PeerState
from .rows import NodeName, Peer, PeerKey, Session

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 10.0  # seconds between looks
_LOOK_OFTEN: Final = 0.25  # while there is a choice of lanes
_YOUNG: Final = 1.0
"""Seconds before a first session is used: both ends may have begun one at the same moment, and
while the second of them takes the place of the first, packets can be lost."""

_WORKS: Final = 200.0
"""Seconds since the last handshake for which a lane works. While there are several to a node they
are kept alive: WireGuard makes a new session every 120 to 180 (REKEY_AFTER_TIME,
REJECT_AFTER_TIME), and it may be seen one look later."""


class Sessions:
    """Looks at our devices, and keeps the table of those who have answered."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Mapping[str, Device]]],
        peers: Table[PeerKey, Peer],
        writer: Writer[PeerKey, Session],
        differs: Callable[[], None],
    ) -> None:
        """
        Args:
            read: gives the devices as they are. May raise OSError.
            peers: as they should be.
            differs: is called when a device that should be there is not or does not answer, or a
                peer has gone from one.
        """
        self._read = read
        self._peers = peers
        self._writer = writer
        self._differs = differs
        self.devices: Mapping[str, Device] = {}  # as they were when they were looked at last
        self.nodes = 0  # that there are lanes to
        self.nodes_answered = 0  # of them, ever
        # Event-loop time, seconds: unlike that of a handshake nobody can set it.
        self._looked_at = -math.inf
        self._heard: dict[PeerKey, tuple[float, float]] = {}  # handshake_at, and when it was

    def seen(self, key: PeerKey) -> PeerState | None:
        """A peer as it was when its device was looked at last."""
        device = self.devices.get(key.device)
        return device.peers.get(key.public_key) if device else None

    @property
    def open(self) -> frozenset[PeerKey]:
        """The peers that there are, on our devices."""
        return frozenset(
            PeerKey(name, key) for name, device in self.devices.items() for key in device.peers
        )

    @property
    def working(self) -> Collection[PeerKey]:
        """Those that have lately answered."""
        since = asyncio.get_running_loop().time() - _WORKS
        return {key for key, (_, heard_at) in self._heard.items() if heard_at > since}

    async def run(self) -> None:
        """Look until cancelled: often while it matters, and when peers come and go."""
        watch = Watch(self._peers)
        try:
            while True:
                try:
                    await self.look()
                except OSError as error:
                    log.warning("WireGuard does not say who has answered: %s", error)
                    self._differs()
                every = _LOOK_OFTEN if self._has_choice() else _LOOK_EVERY
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await anext(watch)
                        await asyncio.sleep(_LOOK_OFTEN)
        finally:
            watch.close()

    async def look(self) -> None:
        """
        Look at the devices now.

        Raises:
            OSError: they do not answer; what was seen last stays.
        """
        before = self.open
        self.devices = await self._read()
        now = asyncio.get_running_loop().time()
        self._heard = {key: self._hear(key, at, now) for key, at in self._handshakes()}
        self._looked_at = now
        known, at_start = self._writer.own, not self._writer.listed
        self._writer.replace(
            {
                key: Session()
                for key, (_, heard_at) in self._heard.items()
                if at_start or key in known or now - heard_at > _YOUNG
            }
        )
        self._count()
        missing = {key.device for key in self._peers.keys()} - self.devices.keys()
        if missing or (before - self.open) & set(self._peers.keys()):
            self._differs()

    def _handshakes(self) -> list[tuple[PeerKey, float]]:
        return [
            (PeerKey(name, public_key), state.handshake_at)
            for name, device in self.devices.items()
            for public_key, state in device.peers.items()
            if state.handshake_at
        ]

    def _hear(self, key: PeerKey, handshake_at: float, now: float) -> tuple[float, float]:
        """A new handshake was after the last look, whatever the clock of the day has become."""
        before = self._heard.get(key)
        if before is not None and before[0] == handshake_at:
            return before
        age = min(max(0.0, time.time() - handshake_at), now - self._looked_at)
        return handshake_at, now - age

    def _count(self) -> None:
        nodes, answered = set(), set()
        for key in self._peers.keys():
            if peer := self._peers.first(key):
                nodes.add(name := NodeName(peer.cluster, peer.node))
                if key in self._heard:
                    answered.add(name)
        self.nodes, self.nodes_answered = len(nodes), len(answered)

    def _has_choice(self) -> bool:
        """Whether some node could be moved to a newer lane, once it has answered there."""
        waiting, older = set(), set()
        for key in self._peers.keys():
            peer = self._peers.first(key)
            if peer is not None and peer.age:
                older.add(NodeName(peer.cluster, peer.node))
            elif peer is not None and key not in self._writer.own:
                waiting.add(NodeName(peer.cluster, peer.node))
        return not waiting.isdisjoint(older)

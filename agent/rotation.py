"""
How this node changes its WireGuard key: when, and when the last one may go.

A key is published when its lanes are open, and the last one goes when nobody needs it any more:
when every node has answered by the new key; else after a while, if no node is left that answers by
the last one only. Such a node has not heard of the new key, or cannot be reached by it, and would
be cut off. The other end judges by the same rule (peer_keys.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.state import Table, Writer

from .lanes import parity
from .own import OwnNode
from .own_keys import OwnKeys
from .peer_keys import OVERLAP
from .rows import NodeName, OwnKey, Peer, PeerKey
from .rules.peers import left_behind, not_open, unheard
from .sessions import Sessions

log = logging.getLogger(__name__)

_SETTLED: Final = 10.0
"""Seconds from when all nodes have answered by the new key until the last one goes. The other end
has seen it work at the same moment, and moves as soon as it looks."""

_LOOK_EVERY: Final = 1.0  # seconds
_NAMED: Final = 3  # nodes


class Rotation:
    """The key of this node, and while it is being changed the one before."""

    def __init__(
        self,
        keys: OwnKeys,
        writer: Writer[str, OwnKey],
        peers: Table[PeerKey, Peer],
        sessions: Sessions,
        *,
        own: OwnNode,
        published: Callable[[], str],
        request: Path,
        max_age: float,
        retired: Callable[[], None],
    ) -> None:
        """
        Args:
            own: is told the key that is to be published.
            published: the key of this node that our own etcd says, and so all others read; empty
                if it says none.
            request: a file that asks for a new key; it is removed then.
            max_age: seconds after which a key is changed; 0: never.
            retired: is called when the peers of the last key have gone, and its devices may go.
        """
        self._keys = keys
        self._writer = writer
        self._own = own
        self._peers = peers
        self._sessions = sessions
        self._published = published
        self._request = request
        self._max_age = max_age
        self._retired = retired
        self.failure = ""  # why the key cannot be changed
        self.waits_for = ""  # while the key is being changed: what comes before the next step
        # Event-loop time, seconds. An agent that starts in the middle waits anew.
        self._published_at: float | None = None
        self._answered_at: float | None = None
        writer.replace(keys.rows)

    async def run(self) -> None:
        """Change the key when it is due, until cancelled. Not before there are devices."""
        while True:
            try:
                await self._step()
                self.failure = ""
            except OSError as error:
                if str(error) != self.failure:
                    log.warning("the WireGuard key: %s", error)
                self.failure = str(error)
            await asyncio.sleep(_LOOK_EVERY)

    async def _step(self) -> None:
        keys = self._keys
        if keys.previous is None:
            self._publish(keys.current.public)
            if self._request.exists() or self._is_old():
                keys.rotate(now=time.time())
                self._published_at = self._answered_at = None
                self.waits_for = "its lanes to open"
                self._writer.replace(keys.rows)
                self._request.unlink(missing_ok=True)
            return
        self.waits_for = self._blocked(keys.previous.public)
        if not self.waits_for:
            keys.retire()
            self._writer.replace(keys.rows)
            await asyncio.sleep(_LOOK_EVERY)  # the peers of that key go
            self._retired()

    def _is_old(self) -> bool:
        return bool(self._max_age) and time.time() - self._keys.current.made_at > self._max_age

    def _publish(self, public_key: str) -> None:
        known = self._own.known
        self._own.learn(msgspec.structs.replace(known, wireguard_public_key=public_key))

    def _blocked(self, previous: str) -> str:
        """What the next step waits for; empty: the previous key may go."""
        now, current = asyncio.get_running_loop().time(), self._keys.current.public
        peers = {key: peer for key in self._peers.keys() if (peer := self._peers.first(key))}
        published = self._published()
        if published != current:
            # Before anybody can be answered by the new key nobody may come to know of it.
            if shut := not_open(peers, self._sessions.open, parity(current)):
                if published == previous:
                    self._publish(previous)
                return f"its lanes to {_names(shut)} to open: see clustermesh show peers"
            self._publish(current)
            return "our own etcd to have the new key, which the MeshNode of this node says"
        self._publish(current)
        if self._published_at is None:
            self._published_at = now
        return self._needed(now - self._published_at, now, peers)

    def _needed(self, since: float, now: float, peers: Mapping[PeerKey, Peer]) -> str:
        """
        Who needs the previous key; empty: nobody.

        Args:
            since: seconds for which others can have known the new one.
        """
        working = self._sessions.working
        if behind := left_behind(peers, working):
            self._answered_at = None
            return (
                f"{_names(behind)}, reached by the last key only: the new one is not known there,"
                " or a UDP port is closed"
            )
        if silent := unheard(peers, working):
            self._answered_at = None
            return f"{_names(silent)} to answer" if since <= OVERLAP else ""
        if self._answered_at is None:
            self._answered_at = now
        return "the others to move" if now - self._answered_at <= _SETTLED else ""


def _names(nodes: Collection[NodeName]) -> str:
    shown = ", ".join(map(str, sorted(nodes)[:_NAMED]))
    more = len(nodes) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown

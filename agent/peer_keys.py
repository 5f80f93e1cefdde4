"""
Which keys each node of the mesh may be using: the one that it publishes, and for a while the last.

A node that changes its key goes on receiving with the old one, until all others know the new one
and have seen it work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from clustermesh.errors import BadRowError
from clustermesh.model import IPNetwork, Node
from clustermesh.state import Table, Watch, Writer

from .lanes import check_public_key, parity
from .rows import NodeName

OVERLAP: Final = 300.0
"""Seconds that a node's previous key is used beside its new one, here and on the node itself."""


class PeerKeys:
    """Follows what nodes publish, into a table of the keys of each, the newest first."""

    def __init__(
        self,
        nodes: Table[str, Node],
        writer: Writer[NodeName, tuple[str, ...]],
        adopted: Mapping[str, tuple[IPNetwork, ...]],
    ) -> None:
        """
        Args:
            adopted: the public keys that our devices already know, with their prefixes: a restart
                in the middle of a rotation must not forget the key that is being replaced.
        """
        self._nodes = nodes
        self._writer = writer
        self._adopted = dict(adopted)
        self._forget_at: dict[NodeName, float] = {}  # of the previous key, seconds, monotonic

    async def run(self) -> None:
        """Follow until cancelled."""
        watch = Watch(self._nodes)
        try:
            while True:
                wake = min(self._forget_at.values(), default=None)
                try:
                    async with asyncio.timeout(None if wake is None else wake - time.monotonic()):
                        changed = await anext(watch)
                except TimeoutError:
                    changed = watch.take()
                for name in changed:
                    self._follow(name)
                self._forget()
                if watch.is_ready and not self._writer.listed:
                    self._writer.list_done()
        finally:
            watch.close()

    def _follow(self, node: str) -> None:
        rows = self._nodes.rows(node)
        for name in [name for name in self._writer.own if name.node == node]:
            if name.cluster not in rows:
                self._writer.delete(name)
                self._forget_at.pop(name, None)
        for row in rows.values():
            self._see(NodeName(row.cluster, row.name), row)

    def _see(self, name: NodeName, node: Node) -> None:
        try:
            key = check_public_key(node.wireguard_public_key)
        except BadRowError:  # the rule `closed` says so
            self._writer.delete(name)
            return
        known = self._writer.own.get(name)
        if known and known[0] == key:
            return
        last = known[0] if known else self._adopted_by(node, key)
        if last and parity(last) != parity(key):
            self._forget_at[name] = time.monotonic() + OVERLAP
            self._writer.put(name, (key, last))
        else:  # a key made from nothing: whoever had the old one has lost it
            self._writer.put(name, (key,))

    def _adopted_by(self, node: Node, key: str) -> str | None:
        """The other key that a device of ours already knows for the node's pods."""
        pods = set(node.pod_cidrs)
        found = (k for k, prefixes in self._adopted.items() if k != key and pods & set(prefixes))
        return next(found, None)

    def _forget(self) -> None:
        now = time.monotonic()
        for name in [name for name, at in self._forget_at.items() if at <= now]:
            del self._forget_at[name]
            keys = self._writer.own.get(name)
            if keys:
                self._writer.put(name, keys[:1])

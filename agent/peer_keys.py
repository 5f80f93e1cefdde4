"""
Which keys each node of the mesh may be using: the one that it publishes, and for a while the last.

A node that changes its key goes on receiving with the old one, until all others know the new one
and have seen it work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Final

from clustermesh.errors import BadRowError
from clustermesh.model import ClusterName, IPNetwork, Node
from clustermesh.state import Table, Watch, Writer

from .lanes import check_public_key, parity
from .rows import NodeName

OVERLAP: Final = 300.0
"""Seconds that a key which has been replaced is used beside the new one at least, by either end."""

_LOOK_AGAIN: Final = 10.0  # seconds, while a key that has been replaced is still needed


class PeerKeys:
    """Follows what nodes publish, into a table of the keys of each, the newest first."""

    def __init__(
        self,
        nodes: Table[str, Node],
        writer: Writer[NodeName, tuple[str, ...]],
        adopted: Mapping[str, Collection[IPNetwork]],
        behind: Callable[[], Collection[NodeName]],
    ) -> None:
        """
        Args:
            adopted: the public keys that our devices already know, with their prefixes: a restart
                in the middle of a rotation must not forget the key that is being replaced.
            behind: the nodes that answer on an older lane only: they keep their previous key.
        """
        self._nodes = nodes
        self._writer = writer
        self._behind = behind
        self._adopted: dict[IPNetwork, list[str]] = {}
        for key, prefixes in adopted.items():
            for prefix in prefixes:
                self._adopted.setdefault(prefix, []).append(key)
        self._clusters: dict[str, set[ClusterName]] = {}  # in which there is a node of a name
        self._forget_at: dict[NodeName, float] = {}  # the previous key; event-loop time, seconds

    async def run(self) -> None:
        """Follow until cancelled."""
        watch = Watch(self._nodes)
        try:
            while True:
                wake = min(self._forget_at.values(), default=None)
                try:
                    async with asyncio.timeout_at(wake):
                        changed = await anext(watch)
                except TimeoutError:
                    changed = watch.take()
                for name in changed:
                    self._follow(name)
                self._forget()
                if watch.is_ready and not self._writer.listed:
                    self._writer.list_done()
                    self._adopted.clear()  # every node has been seen: who comes now is another
        finally:
            watch.close()

    def _follow(self, node: str) -> None:
        rows = self._nodes.rows(node)
        now = {row.cluster for row in rows.values()}
        for cluster in self._clusters.get(node, set()) - now:
            name = NodeName(cluster, node)
            self._writer.delete(name)
            self._forget_at.pop(name, None)
        if now:
            self._clusters[node] = now
        else:
            self._clusters.pop(node, None)
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
            self._forget_at[name] = asyncio.get_running_loop().time() + OVERLAP
            self._writer.put(name, (key, last))
        else:  # a key made from nothing: whoever had the old one has lost it
            self._writer.put(name, (key,))

    def _adopted_by(self, node: Node, key: str) -> str | None:
        """The other key that a device of ours already knows for the node's pods."""
        found = (k for cidr in node.pod_cidrs for k in self._adopted.get(cidr, ()) if k != key)
        return next(found, None)

    def _forget(self) -> None:
        """Those previous keys whose time is over, and that are not all that works."""
        now = asyncio.get_running_loop().time()
        due = [name for name, at in self._forget_at.items() if at <= now]
        behind = self._behind() if due else ()
        for name in due:
            if name in behind:
                self._forget_at[name] = now + _LOOK_AGAIN
                continue
            del self._forget_at[name]
            keys = self._writer.own.get(name)
            if keys:
                self._writer.put(name, keys[:1])

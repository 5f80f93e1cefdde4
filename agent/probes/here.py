"""What probes have to know of this node, and what they tell others of it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping

from agent.kernel.facts import Facts
from agent.kernel.tunnel import TunnelProtocol
from agent.kernels import Kernel
from agent.own import OwnNode
from agent.rows import Peer, PeerKey, Routing
from agent.rules.causes import Carrier, Lookup, Way
from agent.rules.probes import PathKey
from agent.settings import AgentSettings
from clustermesh.model import IPAddress, Node
from clustermesh.state import Index, Table

from .messages import Message
from .recent import Recent, rp_filtered, strict_devices

_NAMES = {TunnelProtocol.VXLAN: "VXLAN", TunnelProtocol.GENEVE: "Geneve"}


class Here:
    """What is known of this node and of its surroundings."""

    def __init__(
        self,
        settings: AgentSettings,
        kernel: Kernel,
        own: OwnNode,
        nodes: Table[str, Node],
        peers: Table[PeerKey, Peer],
    ) -> None:
        self._settings = settings
        self._kernel = kernel
        self._own = own
        self._nodes = nodes
        self._peers = Index("peers by node", peers, lambda _, row: [(row.cluster, row.node)])
        self._recent = Recent(self._counters, lambda: asyncio.get_running_loop().time())

    @property
    def public_key(self) -> str:
        """WireGuard's; empty without encryption."""
        return self._own.known.wireguard_public_key

    async def attached(self) -> None:
        """Wait until this node carries traffic."""
        await self._kernel.attached()

    def source(self, version: int) -> IPAddress | None:
        """The address that is probed from."""
        facts = self._kernel.facts
        return facts.source(version) if facts else None

    def node_ip(self, version: int) -> IPAddress | None:
        """The node's own address."""
        return next((ip for ip in self._node_ips() if ip.version == version), None)

    def addresses(self) -> frozenset[IPAddress]:
        """All of those."""
        health = (self.source(version) for version in (4, 6))
        return frozenset([*(ip for ip in health if ip), *self._node_ips()])

    def carrier(self, key: PathKey) -> Carrier:
        """What carries packets there."""
        if self._settings.encrypts:
            return Carrier(Way.UDP, "WireGuard", ", ".join(self._ports(key)))
        match self._settings.routings.to(key.cluster):
            case Routing.TUNNEL:
                tunnel = self._settings.tunnel
                return Carrier(Way.UDP, _NAMES[tunnel.protocol], str(tunnel.port))
            case Routing.DIRECT:
                return Carrier(Way.NEXT_HOP)
            case Routing.NATIVE:
                return Carrier(Way.NETWORK)

    async def lookup(self, source: IPAddress, target: IPAddress) -> Lookup:
        """The route that the kernel takes."""
        try:
            return await self._kernel.lookup(source, target)
        except OSError as error:
            return Lookup(error=error.errno or errno.ENETUNREACH)

    def dropped(self) -> tuple[int, Mapping[str, int]]:
        """Packets dropped lately by reverse-path filters, and by our programs."""
        found = dict(self._recent.look())
        return found.pop("rp_filter", 0), found

    def strict(self) -> tuple[str, ...]:
        """The devices whose reverse-path filter is strict."""
        return strict_devices(self._settings.sysctls)

    def message(self, key: PathKey, verdict: str) -> Message:
        """What we say of ourselves to the node at the other end of a way."""
        filtered, dropped = self.dropped()
        node = self._nodes.rows(key.node).get(key.cluster)
        return Message(
            clustermesh="question",
            token="",
            cluster=self._settings.cluster_name,
            node=self._settings.node_name,
            version=6 if key.version == 6 else 4,
            verdict=verdict,
            rp_filtered=filtered,
            dropped=dropped,
            key=self.public_key,
            your_key=node.wireguard_public_key if node else "",
        )

    def _ports(self, key: PathKey) -> list[str]:
        """Where the other end receives what is encrypted."""
        rows = self._peers.rows((key.cluster, key.node)).values()
        return [str(port) for port in sorted({row.endpoint.port for row in rows})]

    def _node_ips(self) -> list[IPAddress]:
        """The InternalIPs of this node that are there."""
        facts: Facts | None = self._kernel.facts
        node = self._nodes.rows(self._settings.node_name).get(self._settings.cluster_name)
        if facts is None or node is None:
            return []
        there = {interface.ip for _, interface in facts.addresses}
        return [ip for kind, ip in node.addresses if kind == "InternalIP" and ip in there]

    def _counters(self) -> Mapping[str, int]:
        return {**self._kernel.status().drops, "rp_filter": rp_filtered()}

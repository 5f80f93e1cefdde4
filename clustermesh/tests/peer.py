"""A cluster as another one's agents see it: what its apiserver would write into its etcd."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from typing import Any, Final

from clustermesh import kinds
from clustermesh.etcd import Etcd
from clustermesh.kinds import ENDPOINTS, IDENTITIES, NODES, SERVICES, Kind
from clustermesh.model import (
    ClusterConfig,
    ClusterId,
    ClusterName,
    Endpoint,
    Identity,
    IdentityId,
    Node,
    ObjectName,
    Port,
    Protocol,
    Service,
    identity_range,
)
from clustermesh.status import Remote

from .etcd_server import EtcdServer

KINDS: Final[tuple[Kind[Any, Any], ...]] = (NODES, SERVICES, IDENTITIES, ENDPOINTS)
WEB: Final = ObjectName("default", "web")


class Peer:
    """Publishes one node, one pod and one service with a backend."""

    def __init__(self, etcd: Etcd, name: str = "west", number: int = 2) -> None:
        self.name = ClusterName(name)
        self.id = ClusterId(number)
        self.etcd = etcd
        self.ip = ip_address(f"10.{number}.0.7")

    async def introduce(self, number: int | None = None, clusters: int = 255) -> None:
        config = ClusterConfig(ClusterId(number or self.id), clusters)
        key = kinds.cluster_config_key(self.name)
        await self.put(key, kinds.encode_cluster_config(config))

    async def publish(self) -> None:
        """Everything, introduction and canaries included."""
        await self.introduce()
        await self.beat("1")
        await self.put_node("node1")
        await self.put_service([str(self.ip)])
        labels = (("k8s", kinds.CLUSTER_LABEL, self.name),)
        identity = Identity(IdentityId(identity_range(self.id, 255)[1]), labels)
        await self.put_row(IDENTITIES, identity.id, identity)
        endpoint = Endpoint(self.ip, None, identity.id, ObjectName("default", "web-0"))
        await self.put_row(ENDPOINTS, self.ip, endpoint)
        await self.finish()

    async def put_node(self, name: str) -> None:
        cidr = ip_network(f"10.{self.id}.0.0/24")
        address = ("InternalIP", ip_address(f"192.0.2.{self.id}"))
        await self.put_row(NODES, name, Node(self.name, self.id, name, (address,), (cidr,)))

    async def put_service(self, ready: Iterable[str]) -> None:
        port = {"http": Port(Protocol.TCP, 80)}
        backends = {ip_address(ip): port for ip in ready}
        await self.put_row(SERVICES, WEB, Service(self.name, self.id, WEB, {}, backends))

    async def finish(self) -> None:
        """Say of every kind that it is all there."""
        for kind in KINDS:
            await self.put(kind.canary(self.name), b"now")

    async def beat(self, text: str) -> None:
        await self.put(kinds.HEARTBEAT, text.encode())

    async def put_row(self, kind: Kind[Any, Any], key: Any, row: Any) -> None:
        await self.put(kind.prefix(self.name) + kind.key(key), kind.encode(row))

    async def put(self, key: str, value: bytes) -> None:
        await self.etcd.put(key.encode(), value)

    async def delete(self, key: str) -> None:
        await self.etcd.delete(key.encode())


@asynccontextmanager
async def peer_in(server: EtcdServer, name: str = "west", number: int = 2) -> AsyncIterator[Peer]:
    """A cluster that has not published anything yet, alone in `server`."""
    async with Etcd(server.config()) as etcd:
        await etcd.delete_prefix(b"cilium/")
        yield Peer(etcd, name, number)


class Reader(typing.Protocol):
    """Whoever reads the cluster."""

    def status(self) -> Remote:
        """How it goes."""


def counts(reader: Reader) -> str:
    """How many rows there are of each kind, as a person would print it."""
    status = reader.status()
    return (
        f"{status.nodes} nodes, {status.services} services, "
        f"{status.identities} identities, {status.endpoints} endpoints"
    )


ALL: Final = "1 nodes, 1 services, 1 identities, 1 endpoints"
NOTHING: Final = "0 nodes, 0 services, 0 identities, 0 endpoints"

"""What is in etcd, key by key, against a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

import msgspec
import pytest

from apiserver.export import Exporter
from apiserver.tables import Exports
from apiserver.users import Users
from clustermesh import kinds
from clustermesh.etcd import Etcd
from clustermesh.model import (
    Affinity,
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
)
from clustermesh.tests.etcd_server import EtcdServer, running, until

EAST, ID = ClusterName("east"), ClusterId(1)
CONFIG = ClusterConfig(ID)
WEB, HIDDEN = ObjectName("shop", "web"), ObjectName("shop", "hidden")
IP = ip_address("10.1.0.7")
IDENTITY = IdentityId(0x10007)
PORTS: Final = {"http": Port(Protocol.TCP, 80)}

SHARED_KEYS: Final = {
    "cilium/.heartbeat",
    "cilium/cluster-config/east",
    "cilium/state/identities/v1/id/65543",
    "cilium/state/ip/v1/default/10.1.0.7",
    "cilium/state/nodes/v1/east/node1",
    "cilium/state/services/v1/east/shop/web",
    "cilium/synced/east/cilium/state/identities/v1",
    "cilium/synced/east/cilium/state/ip/v1",
    "cilium/synced/east/cilium/state/nodes/v1",
    "cilium/synced/east/cilium/state/services/v1",
    "cilium/synced/east/clustermesh/local/services/v1",
}
LOCAL_KEYS: Final = {
    "clustermesh/local/services/v1/east/shop/web",
    "clustermesh/local/services/v1/east/shop/hidden",
}


class Row(NamedTuple):
    """A key of etcd as it is now."""

    value: bytes
    lease: int
    revision: int


def service(name: ObjectName, *, shared: bool = True) -> Service:
    frontends, backends = {ip_address("10.101.0.1"): PORTS}, {IP: PORTS}
    return Service(EAST, ID, name, frontends, backends, shared=shared, affinity=Affinity.LOCAL)


class Cluster:
    """The exports of the cluster east, by the writers that fill them."""

    def __init__(self) -> None:
        self.exports = Exports()
        self.nodes = self.exports.nodes.writer("test")
        self.services = self.exports.services.writer("test")
        self.identities = self.exports.identities.writer("test")
        self.endpoints = self.exports.endpoints.writer("test")

    def fill(self, *, services: bool = True) -> None:
        """Give each kind its rows, and say that these are all."""
        address, cidr = ("InternalIP", ip_address("192.0.2.1")), ip_network("10.1.0.0/24")
        self.nodes.replace({"node1": Node(EAST, ID, "node1", (address,), (cidr,))})
        if services:
            self.services.replace({WEB: service(WEB), HIDDEN: service(HIDDEN, shared=False)})
        labels = (("k8s", kinds.CLUSTER_LABEL, "east"),)
        self.identities.replace({IDENTITY: Identity(IDENTITY, labels)})
        self.endpoints.replace({IP: Endpoint(IP, None, IDENTITY, ObjectName("shop", "web-0"))})


async def rows(etcd: Etcd) -> Mapping[str, Row]:
    """Everything that is in etcd."""
    return {
        row.key.decode(): Row(row.value, row.lease, row.mod_revision)
        for prefix in (b"cilium/", b"clustermesh/")
        async for page in etcd.range(prefix)
        for row in page.rows
    }


@asynccontextmanager
async def exported(
    etcd: Etcd, cluster: Cluster, beat_every: float = kinds.HEARTBEAT_EVERY
) -> AsyncIterator[Exporter]:
    """An apiserver that keeps `cluster` in `etcd`."""
    users = Users(etcd, EAST, None)
    exporter = Exporter(etcd, users, EAST, cluster.exports, beat_every=beat_every)
    async with running(exporter.run(CONFIG)):
        yield exporter


async def complete(etcd: Etcd) -> bool:
    return (await rows(etcd)).keys() == SHARED_KEYS | LOCAL_KEYS


@pytest.fixture
async def etcd(etcd_server: EtcdServer) -> AsyncIterator[Etcd]:
    """An etcd with nothing of a mesh in it."""
    async with Etcd(etcd_server.config()) as found:
        for prefix in (b"cilium/", b"clustermesh/"):
            await found.delete_prefix(prefix)
        yield found


async def test_every_key_is_there_with_its_value_and_its_lease(etcd: Etcd) -> None:
    cluster = Cluster()
    cluster.fill()
    async with exported(etcd, cluster):
        await until(lambda: complete(etcd))
        found = await rows(etcd)
    for name in found:
        if name.startswith("cilium/synced/") or name == kinds.HEARTBEAT:
            assert datetime.fromisoformat(found[name].value.decode()).tzinfo
        assert bool(found[name].lease) is ("identities/v1/id/" not in name)
    assert found["cilium/cluster-config/east"].value == kinds.encode_cluster_config(CONFIG)
    assert found["cilium/state/identities/v1/id/65543"].value == (
        b"k8s:io.cilium.k8s.policy.cluster=east;"
    )
    assert found["cilium/state/services/v1/east/shop/web"].value == (
        kinds.SERVICES.encode(service(WEB))
    )
    local = found["clustermesh/local/services/v1/east/shop/web"].value
    assert msgspec.json.decode(local)["affinity"] == "local"
    assert "affinity" not in msgspec.json.decode(
        found["cilium/state/services/v1/east/shop/web"].value
    )


async def test_a_kind_that_is_not_all_read_has_no_canary_and_loses_nothing(etcd: Etcd) -> None:
    earlier = "cilium/state/services/v1/east/shop/web"
    await etcd.put(earlier.encode(), b"of an earlier process")
    canary = "cilium/synced/east/cilium/state/services/v1"
    cluster = Cluster()
    cluster.fill(services=False)

    async def others_are_complete() -> bool:
        found = await rows(etcd)
        return {k for k in SHARED_KEYS if "services" not in k} <= found.keys()

    async with exported(etcd, cluster):
        await until(others_are_complete)
        found = await rows(etcd)
        assert (canary in found, found[earlier].value) == (False, b"of an earlier process")
        cluster.services.list_done()
        await until(lambda: has(etcd, canary))
        assert earlier not in await rows(etcd)  # it is known to be gone now


async def has(etcd: Etcd, key: str) -> bool:
    return await etcd.get(key.encode()) is not None


async def test_canaries_come_after_the_last_row_of_their_kind(etcd: Etcd) -> None:
    cluster = Cluster()
    cluster.fill()
    async with exported(etcd, cluster):
        await until(lambda: complete(etcd))
        await assert_canaries_are_last(etcd)


async def assert_canaries_are_last(etcd: Etcd) -> None:
    found = await rows(etcd)
    for name in found:
        if name.startswith("cilium/synced/east/"):
            prefix = name.removeprefix("cilium/synced/east/")
            of_kind = [row.revision for key, row in found.items() if key.startswith(f"{prefix}/")]
            assert of_kind
            assert found[name].revision > max(of_kind)


@pytest.mark.parametrize("value", [b'{"id":9}', None])
async def test_a_cluster_config_that_was_tampered_with_is_put_back(
    etcd: Etcd, value: bytes | None
) -> None:
    cluster = Cluster()
    cluster.fill()
    key, right = b"cilium/cluster-config/east", kinds.encode_cluster_config(CONFIG)
    async with exported(etcd, cluster):
        await until(lambda: complete(etcd))
        await (etcd.delete(key) if value is None else etcd.put(key, value))

        async def is_back() -> bool:
            return await etcd.get(key) == right

        await until(is_back)


async def test_a_cluster_config_of_another_cluster_is_left_alone(etcd: Etcd) -> None:
    await etcd.put(b"cilium/cluster-config/west", b"theirs")
    cluster = Cluster()
    cluster.fill()
    async with exported(etcd, cluster):
        await until(lambda: has(etcd, "cilium/cluster-config/east"))
        assert await etcd.get(b"cilium/cluster-config/west") == b"theirs"


async def test_a_restart_writes_nothing_that_is_right_but_the_heartbeat(etcd: Etcd) -> None:
    first = Cluster()
    first.fill()
    async with exported(etcd, first):
        await until(lambda: complete(etcd))
    before = dict(await rows(etcd))
    second = Cluster()
    second.fill()
    async with exported(etcd, second) as exporter:
        await until(lambda: all(r.synced.is_set() for r in exporter.reconcilers.values()))

        async def has_beaten() -> bool:
            return (await rows(etcd))[kinds.HEARTBEAT].revision > before[kinds.HEARTBEAT].revision

        await until(has_beaten)
        after = dict(await rows(etcd))
    del before[kinds.HEARTBEAT], after[kinds.HEARTBEAT]
    assert after == before


async def test_what_is_gone_when_a_process_starts_is_removed(etcd: Etcd) -> None:
    first = Cluster()
    first.fill()
    async with exported(etcd, first):
        await until(lambda: complete(etcd))
    second = Cluster()
    second.fill()
    second.nodes.replace({})
    async with exported(etcd, second):
        await until(lambda: lacks(etcd, "cilium/state/nodes/v1/east/node1"))


async def lacks(etcd: Etcd, key: str) -> bool:
    return not await has(etcd, key)


async def test_a_service_that_is_not_shared_any_more_stays_for_its_own_agents(etcd: Etcd) -> None:
    cluster = Cluster()
    cluster.fill()
    shared = "cilium/state/services/v1/east/shop/web"
    local = "clustermesh/local/services/v1/east/shop/web"
    async with exported(etcd, cluster):
        await until(lambda: complete(etcd))
        cluster.services.put(WEB, service(WEB, shared=False))
        await until(lambda: lacks(etcd, shared))
        assert await has(etcd, local)
        cluster.services.put(WEB, service(WEB))
        await until(lambda: has(etcd, shared))
        cluster.services.delete(WEB)
        await until(lambda: lacks(etcd, local))
        await until(lambda: lacks(etcd, shared))


async def test_what_went_with_a_lost_lease_comes_back_the_canaries_too(etcd: Etcd) -> None:
    cluster = Cluster()
    cluster.fill()
    async with exported(etcd, cluster, beat_every=0.2):
        await until(lambda: complete(etcd))
        for lease in {row.lease for row in (await rows(etcd)).values() if row.lease}:
            await etcd.revoke_lease(lease)
        await until(lambda: complete(etcd))
        await assert_canaries_are_last(etcd)


async def test_an_emptied_etcd_is_filled_again_and_the_canaries_come_last(
    own_etcd_server: EtcdServer,
) -> None:
    cluster = Cluster()
    cluster.fill()
    async with Etcd(own_etcd_server.config()) as etcd, exported(etcd, cluster):
        await until(lambda: complete(etcd))
        own_etcd_server.stop()
        own_etcd_server.wipe()
        own_etcd_server.start()
        async with Etcd(own_etcd_server.config()) as fresh:
            wanted = (SHARED_KEYS | LOCAL_KEYS) - {kinds.HEARTBEAT}  # that comes within a minute

            async def is_filled() -> bool:
                return wanted <= (await rows(fresh)).keys()

            await until(is_filled)
            await assert_canaries_are_last(fresh)

"""A copy of the cluster west in the etcd of the cluster east, and how agents of east find it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from apiserver.mirror import Mirror
from apiserver.users import Users
from clustermesh import kinds
from clustermesh.errors import UserError
from clustermesh.etcd import Etcd, EtcdConfig, Health
from clustermesh.follow import ClusterIds, Feed, Follower, Pace, Remotes
from clustermesh.kinds import NODES
from clustermesh.model import ClusterId, ClusterName
from clustermesh.state import Table
from clustermesh.status import RemoteState
from clustermesh.tests.etcd_server import EtcdServer, running, until
from clustermesh.tests.peer import ALL, KINDS, counts, peer_in

EAST, WEST = ClusterName("east"), ClusterName("west")
STEADY: Final = Pace(look_every=0.05)
FAST: Final = Pace(look_every=0.05, heartbeat_lost=0.5)

COPY: Final = {
    "cilium/cache/nodes/v1/west/node1": "cilium/state/nodes/v1/west/node1",
    "cilium/cache/services/v1/west/default/web": "cilium/state/services/v1/west/default/web",
    "cilium/cache/identities/v1/west/id/131073": "cilium/state/identities/v1/id/131073",
    "cilium/cache/ip/v1/west/10.2.0.7": "cilium/state/ip/v1/default/10.2.0.7",
}
"""Where the rows of west are in east, and where they are in west."""

BESIDE: Final = {
    "cilium/cluster-config/west",
    "cilium/synced/west/cilium/cache/nodes/v1",
    "cilium/synced/west/cilium/cache/services/v1",
    "cilium/synced/west/cilium/cache/identities/v1",
    "cilium/synced/west/cilium/cache/ip/v1",
    "clustermesh/local/heartbeat/west",
}


class East:
    """The cluster east: its etcd, and what of west is in it."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self.users = Users(etcd, EAST, None)
        self.ids = ClusterIds(EAST, ClusterId(1), 255)

    def mirror(self, pace: Pace = STEADY) -> Mirror:
        return Mirror(WEST, self.ids, self.etcd, self.users, pace)

    def agent(self, pace: Pace = STEADY) -> Follower:
        """Reads the cluster west as an agent of east does, from the copy."""
        feeds = {kind.name: Feed(kind, Table(kind.name).writer(WEST), Health("")) for kind in KINDS}
        return Follower(WEST, ClusterIds(EAST, ClusterId(1), 255), feeds, pace)

    async def keys(self) -> dict[str, bytes]:
        return {
            row.key.decode(): row.value
            for prefix in (b"cilium/", b"clustermesh/")
            async for page in self.etcd.range(prefix)
            for row in page.rows
        }

    async def is_copied(self) -> bool:
        return (await self.keys()).keys() == COPY.keys() | BESIDE


@pytest.fixture
async def east(own_etcd_server: EtcdServer) -> AsyncIterator[East]:
    async with Etcd(own_etcd_server.config()) as etcd:
        yield East(etcd)


def state_of(of: Mirror | Follower) -> str:
    """State and reason, as a person would print them."""
    status = of.status()
    return f"{status.state}: {status.last_error}" if status.last_error else str(status.state)


async def test_rows_are_copied_byte_for_byte_and_followed(
    etcd_server: EtcdServer, east: East
) -> None:
    async with peer_in(etcd_server) as west:
        await west.publish()
        await west.put("cilium/state/services/v1/north/default/web", b"{}")  # not its own
        mirror, agent = east.mirror(), east.agent()
        async with running(mirror.run(etcd_server.config), agent.run(east.etcd)):
            await until(east.is_copied)
            copied = await east.keys()
            for copy, original in COPY.items():
                assert copied[copy] == await west.etcd.get(original.encode()), copy
            assert kinds.decode_cluster_config(copied["cilium/cluster-config/west"]).cached
            await until(lambda: state_of(agent) == "ready")
            assert counts(mirror) == counts(agent) == ALL
            await west.put_service([])
            await west.delete(NODES.prefix(WEST) + "node1")
            await until(lambda: agent.status().nodes == 0)
            (service,) = agent.feeds["services"].writer.own.values()
            await until(lambda: not agent.feeds["services"].writer.own[service.name].backends)


async def test_a_row_that_makes_no_sense_is_for_agents_to_judge(
    etcd_server: EtcdServer, east: East
) -> None:
    async with peer_in(etcd_server) as west:
        await west.publish()
        await west.put("cilium/state/nodes/v1/west/liar", b"{}")
        mirror, agent = east.mirror(), east.agent()
        async with running(mirror.run(etcd_server.config), agent.run(east.etcd)):
            await until(
                lambda: (
                    [b.key for b in agent.bad_rows("nodes")] == ["cilium/cache/nodes/v1/west/liar"]
                )
            )
            await until(lambda: counts(agent) == ALL)


async def test_a_cluster_that_cannot_be_is_not_copied(etcd_server: EtcdServer, east: East) -> None:
    async with peer_in(etcd_server) as west:
        await west.publish()
        await west.introduce(1)
        mirror = east.mirror()
        async with running(mirror.run(etcd_server.config)):
            await until(lambda: "its cluster id 1 is our own" in state_of(mirror))
            assert await east.keys() == {}


async def test_a_cluster_that_is_away_keeps_its_copy_also_through_a_restart(
    etcd_server: EtcdServer, east: East
) -> None:
    async with peer_in(etcd_server) as west:
        await west.publish()
        async with running(east.mirror().run(etcd_server.config)):
            await until(east.is_copied)
    before = await east.keys()
    late, lost = East(east.etcd).mirror(), EtcdServer.config(etcd_server, "admin", _NOWHERE)
    async with running(late.run(lambda: lost)):
        await until(lambda: "connection refused" in state_of(late))
        await until(lambda: all(r.synced.is_set() for r in late.reconcilers))
        assert await east.keys() == before


_NOWHERE: Final = "https://127.0.0.1:1"


async def test_our_etcd_that_lost_its_data_is_filled_again_though_the_cluster_is_away(
    own_etcd_server: EtcdServer, etcd_server: EtcdServer, east: East
) -> None:
    mirror = east.mirror()

    def nowhere() -> EtcdConfig:
        raise UserError("no file")

    async with peer_in(etcd_server) as west:
        await west.publish()
        async with running(mirror.run(etcd_server.config)):
            await until(east.is_copied)
    async with running(mirror.run(nowhere)):
        await asyncio.to_thread(own_etcd_server.stop)
        own_etcd_server.wipe()
        await asyncio.to_thread(own_etcd_server.start)
        await until(east.is_copied)
        assert "no file" in state_of(mirror)


async def test_agents_hear_the_heart_of_the_cluster_and_not_ours(
    etcd_server: EtcdServer, east: East
) -> None:
    async with peer_in(etcd_server) as west:
        await west.publish()
        agent = east.agent(FAST)
        async with running(east.mirror(FAST).run(etcd_server.config), agent.run(east.etcd)):
            beats = count()

            async def is_ready() -> bool:
                await west.beat(str(next(beats)))
                return agent.status().state is RemoteState.READY

            await until(is_ready)
            await east.etcd.put(kinds.HEARTBEAT.encode(), b"ours")
            await until(lambda: state_of(agent).startswith("failed: no heartbeat"))
            assert counts(agent) == ALL
            await until(is_ready)


async def test_a_cluster_that_is_disconnected_takes_its_copy_along(
    etcd_server: EtcdServer, east: East, tmp_path: Path
) -> None:
    remotes = Remotes(tmp_path, EAST, lambda _: east.mirror(), drain=0.2)
    ca, (cert, key) = etcd_server.certs.path("ca", "crt"), etcd_server.pair("admin")
    (tmp_path / "west").write_text(
        f"endpoints: [{etcd_server.url}]\ntrusted-ca-file: {ca}\ncert-file: {cert}\nkey-file: {key}"
    )
    await remotes.open()
    await east.etcd.put(b"cilium/cluster-config/east", b"ours")
    async with peer_in(etcd_server) as west, running(remotes.run()):
        await west.publish()

        async def is_copied() -> bool:
            return COPY.keys() <= (await east.keys()).keys()

        await until(is_copied)
        (tmp_path / "west").unlink()

        async def are_services_gone() -> bool:
            return "cilium/cache/services/v1/west/default/web" not in await east.keys()

        await until(are_services_gone)
        assert "cilium/cache/nodes/v1/west/node1" in await east.keys()  # the way to its pods

        async def is_gone() -> bool:
            return (await east.keys()).keys() == {"cilium/cluster-config/east"}

        await until(is_gone)

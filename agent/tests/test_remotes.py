"""The other clusters, by the files that say which they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.cache import Cache
from agent.cluster import ClusterReader
from agent.tables import Read
from clustermesh.follow import ClusterIds, Pace, Remotes
from clustermesh.model import ClusterId, ClusterName
from clustermesh.status import RemoteState
from clustermesh.tests.etcd_server import EtcdServer, running, until
from clustermesh.tests.peer import ALL, WEB, counts, peer_in

EAST, WEST = ClusterName("east"), ClusterName("west")


class World:
    """An agent of the cluster east, and its directory of other clusters."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "clusters"
        self.read = Read()
        ids, cache = ClusterIds(EAST, ClusterId(1), 255), Cache(directory / "state")
        pace = Pace(look_every=0.05)
        self.remotes = Remotes(
            self.directory,
            EAST,
            lambda name: ClusterReader(name, ids, self.read, cache, pace),
            drain=0.2,
        )

    def connect(self, server: EtcdServer, name: str = "west") -> None:
        """Write the file of a cluster, as one would that swaps it atomically."""
        ca, (cert, key) = server.certs.path("ca", "crt"), server.pair("admin")
        self.write(
            f"endpoints: [{server.url}]\ntrusted-ca-file: {ca}\ncert-file: {cert}\nkey-file: {key}",
            name,
        )

    def write(self, text: str, name: str = "west") -> None:
        self.directory.mkdir(exist_ok=True)
        fresh = self.directory / ".fresh"
        fresh.write_text(text)
        fresh.rename(self.directory / name)

    @property
    def states(self) -> dict[str, str]:
        """How each of them does."""
        return {remote.cluster: str(remote.state) for remote in self.remotes.status()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_file_that_appears_connects_and_one_that_goes_away_drains(
    etcd_server: EtcdServer, world: World
) -> None:
    await world.remotes.open()  # the directory is not even there
    async with peer_in(etcd_server) as west, running(world.remotes.run()):
        await west.publish()
        assert world.states == {}
        world.connect(etcd_server)
        await until(lambda: world.states == {"west": "ready"})
        assert counts(world.remotes.members[WEST]) == ALL
        (world.directory / "west").unlink()
        await until(lambda: world.states == {})
        # In order: nothing new goes there, and then there is no way there either.
        await until(lambda: not len(world.read.services))
        assert len(world.read.nodes) > 0
        await until(lambda: not len(world.read.nodes))
        world.connect(etcd_server)
        await until(lambda: world.states == {"west": "ready"})


async def test_a_file_that_changes_reconnects_and_meanwhile_nothing_is_withdrawn(
    etcd_server: EtcdServer, world: World
) -> None:
    world.connect(etcd_server)
    await world.remotes.open()
    async with peer_in(etcd_server) as west, running(world.remotes.run()):
        await west.publish()
        await until(lambda: world.states == {"west": "ready"})
        world.write("endpoints: []")
        await until(lambda: world.states == {"west": "failed"})
        reader = world.remotes.members[WEST]
        assert "there is none" in str(reader.status().last_error)
        assert counts(reader) == ALL
        await west.put_service(["10.2.0.9"])
        world.connect(etcd_server)
        await until(lambda: [str(ip) for ip in backends(world)] == ["10.2.0.9"])


def backends(world: World) -> list[object]:
    return list(world.read.services.rows(WEB)[WEST].backends)


async def test_a_directory_that_is_unmounted_is_no_order_to_leave(
    etcd_server: EtcdServer, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.connect(etcd_server)
    await world.remotes.open()
    async with peer_in(etcd_server) as west, running(world.remotes.run()):
        await west.publish()
        await until(lambda: world.states == {"west": "ready"})
        world.directory.rename(world.directory.with_name("elsewhere"))
        await until(lambda: "the clusters stay as they are" in caplog.text)
        assert world.states == {"west": "ready"}
        world.directory.with_name("elsewhere").rename(world.directory)
        (world.directory / "west").unlink()
        await until(lambda: world.states == {})
    assert caplog.text.count("the clusters stay as they are") == 1


async def test_a_directory_that_cannot_be_read_at_first_is_named_and_waited_for(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.directory.write_text("no directory")
    opening = asyncio.create_task(world.remotes.open())
    await until(lambda: "nothing is read before this is" in caplog.text)
    assert not opening.done()
    world.directory.unlink()
    world.directory.mkdir()
    await asyncio.wait_for(opening, 10)


async def test_files_that_are_no_clusters_are_passed_over(
    etcd_server: EtcdServer, world: World
) -> None:
    for name in ("east", "ca.crt", "Key", "x" * 33):
        world.connect(etcd_server, name)
    (world.directory / "folder").mkdir()
    (world.directory / "dangling").symlink_to("nowhere")
    await world.remotes.open()
    assert world.states == {}


async def test_known_clusters_hold_the_tables_back_until_they_are_read(
    etcd_server: EtcdServer, world: World
) -> None:
    world.connect(etcd_server)
    await world.remotes.open()
    assert world.states == {"west": "connecting"}
    read = world.read
    assert (WEST in read.services.origins, read.services.is_ready) == (True, False)
    async with peer_in(etcd_server) as west, running(world.remotes.run()):
        await west.publish()
        await until(lambda: read.services.is_ready)


async def test_two_clusters_of_one_id_do_not_share_it(
    etcd_server: EtcdServer, world: World
) -> None:
    world.connect(etcd_server, "west")
    await world.remotes.open()
    async with peer_in(etcd_server) as west, running(world.remotes.run()):
        await west.publish()
        await until(lambda: world.states == {"west": "ready"})
        await west.put("cilium/cluster-config/north", b'{"id":2}')
        world.connect(etcd_server, "north")
        await until(lambda: world.states == {"north": "refused", "west": "ready"})
        north = world.remotes.members[ClusterName("north")].status()
        assert north.last_error == "its cluster id 2 is that of west: give it another one"
        assert north.state is RemoteState.REFUSED


async def test_bad_rows_say_which_cluster_they_are_from(
    etcd_server: EtcdServer, world: World
) -> None:
    world.connect(etcd_server)
    await world.remotes.open()
    async with peer_in(etcd_server) as west, running(world.remotes.run()):
        await west.publish()
        await west.put("cilium/state/nodes/v1/west/liar", b'{"Name":"liar","Cluster":"east"}')
        await until(lambda: bool(list(world.remotes.bad_rows("nodes"))))
        (bad,) = world.remotes.bad_rows("nodes")
        assert (bad.origin, bad.key) == ("west", "cilium/state/nodes/v1/west/liar")
        assert bad.error == "Cluster is 'east', not 'west'"

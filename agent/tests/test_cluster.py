"""One cluster, read from a real etcd: believed or refused, lost, replaced, and remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cache import Cache
from agent.cluster import ClusterReader
from agent.tables import Read
from clustermesh import kinds
from clustermesh.errors import UserError
from clustermesh.etcd import EtcdConfig
from clustermesh.follow import ClusterIds, Pace, RefusedError
from clustermesh.kinds import NODES, SERVICES
from clustermesh.model import ClusterId, ClusterName
from clustermesh.status import RemoteState
from clustermesh.tests.etcd_server import EtcdServer, running, until
from clustermesh.tests.peer import ALL, NOTHING, WEB, Peer, counts, peer_in

EAST, WEST, NORTH = ClusterName("east"), ClusterName("west"), ClusterName("north")
FAST = Pace(look_every=0.05, heartbeat_lost=0.5)
STEADY = Pace(look_every=0.05)


class Agent:
    """What an agent of the cluster east (id 1) keeps between restarts, and what it does not."""

    def __init__(self, state: Path) -> None:
        self.read = Read()
        self.cache = Cache(state)
        self.ids = ClusterIds(EAST, ClusterId(1), 255)

    def reader(
        self, name: ClusterName = WEST, pace: Pace = STEADY, *, save_every: float = 0.05
    ) -> ClusterReader:
        return ClusterReader(name, self.ids, self.read, self.cache, pace, save_every=save_every)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path / "state")


def state_of(reader: ClusterReader) -> str:
    """State and reason, as a person would print them."""
    status = reader.status()
    return f"{status.state}: {status.last_error}" if status.last_error else str(status.state)


def names(reader: ClusterReader) -> list[str]:
    """The rows that are skipped at present."""
    return sorted(
        f"{row.origin} {row.key}" for kind in reader.feeds for row in reader.bad_rows(kind)
    )


async def test_a_cluster_that_has_introduced_itself_is_read(
    etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader()
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)
        assert counts(reader) == ALL
        assert reader.status().id == 2
        assert agent.read.services.is_ready
        await west.put_service([])
        await until(lambda: not agent.read.services.rows(WEB)[WEST].backends)


async def test_one_that_has_not_is_waited_for(etcd_server: EtcdServer, agent: Agent) -> None:
    reader = agent.reader()
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await until(lambda: "knows no cluster 'west'" in state_of(reader))
        assert reader.status().state is RemoteState.CONNECTING
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)


@pytest.mark.parametrize(
    ("number", "clusters", "why"),
    [
        (1, 255, "its cluster id 1 is our own"),
        (3, 255, "its cluster id 3 is that of north"),
        (2, 511, "it allows 511 clusters, and we 255"),
        (300, 255, "makes no sense: cluster id 300 is not in 1-255"),
    ],
)
async def test_a_cluster_that_cannot_be_is_refused_until_it_is_put_right(
    etcd_server: EtcdServer, agent: Agent, number: int, clusters: int, why: str
) -> None:
    agent.ids.claim(NORTH, kinds.decode_cluster_config(b'{"id":3}'))
    reader = agent.reader()
    async with peer_in(etcd_server) as west:
        await west.publish()
        await west.introduce(number, clusters)
        async with running(reader.run(etcd_server.config)):
            await until(lambda: why in state_of(reader))
            assert reader.status().state is RemoteState.REFUSED
            assert counts(reader) == NOTHING
            await west.introduce()
            await until(lambda: reader.status().state is RemoteState.READY)
            assert counts(reader) == ALL


def test_an_id_is_free_again_when_its_cluster_has_left(agent: Agent) -> None:
    config = kinds.decode_cluster_config(b'{"id":2}')
    agent.ids.claim(NORTH, config)
    agent.ids.release(NORTH)
    agent.ids.claim(WEST, config)


def test_our_own_etcd_must_know_our_own_id(agent: Agent) -> None:
    with pytest.raises(RefusedError, match="our own etcd says that our cluster id is 2"):
        agent.ids.claim(EAST, kinds.decode_cluster_config(b'{"id":2}'))
    agent.ids.claim(EAST, kinds.decode_cluster_config(b'{"id":1}'))


async def test_nothing_is_pruned_before_the_canary_says_that_all_is_there(
    etcd_server: EtcdServer, agent: Agent, tmp_path: Path
) -> None:
    await remember(etcd_server, agent)
    late = Agent(tmp_path / "state")
    reader = late.reader()
    assert counts(reader) == ALL
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.introduce()
        await west.put_service(["10.2.0.8"])  # its apiserver has not written the rest yet
        await until(lambda: reader.status().state is RemoteState.LISTING)
        await west.put(NODES.canary(WEST), b"now")
        await until(lambda: reader.status().nodes == 0)  # these are complete
        assert reader.status().services == 1
        assert str(backends(late)) == "['10.2.0.7']"
        assert not late.read.services.is_ready
        await west.put(SERVICES.canary(WEST), b"now")
        await until(lambda: str(backends(late)) == "['10.2.0.8']")
        assert counts(reader) == "0 nodes, 1 services, 1 identities, 1 endpoints"


def backends(agent: Agent) -> list[str]:
    """Of the service default/web in the cluster west."""
    row = agent.read.services.rows(WEB).get(WEST)
    return sorted(map(str, row.backends)) if row else []


async def remember(server: EtcdServer, agent: Agent) -> None:
    """Let an agent run that reads the cluster west, and then stops."""
    reader = agent.reader()
    async with peer_in(server) as west, running(reader.run(server.config)):
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)
    assert counts(reader) == ALL  # stopping withdraws nothing


async def test_an_etcd_that_is_replaced_by_an_empty_one_takes_nothing_away(
    own_etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader()
    seen: list[str] = []
    agent.read.services.listeners.add(Witness(agent, seen))
    async with running(reader.run(own_etcd_server.config)):
        async with peer_in(own_etcd_server) as west:
            await west.publish()
            await until(lambda: reader.status().state is RemoteState.READY)
        own_etcd_server.stop()
        await until(lambda: reader.status().state is RemoteState.FAILED)
        assert reader.status().last_error
        own_etcd_server.wipe()
        own_etcd_server.start()
        async with peer_in(own_etcd_server) as west:
            await west.introduce()
            await west.put_service(["10.2.0.8"])
            listings = reader.feeds["services"].health.listings
            await west.put(NODES.canary(WEST), b"now")
            await until(lambda: reader.status().nodes == 0)
            assert (reader.feeds["services"].health.listings, backends(agent)) == (
                listings,
                ["10.2.0.7"],
            )
            await west.publish()
            await until(lambda: reader.status().state is RemoteState.READY)
            await until(lambda: counts(reader) == ALL)
    assert "[]" not in seen  # at no time


async def test_an_etcd_that_another_cluster_was_set_up_in_takes_nothing_away(
    own_etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader(pace=Pace(look_every=3.0))  # a listing comes before the look
    async with running(reader.run(own_etcd_server.config)):
        async with peer_in(own_etcd_server) as west:
            await west.publish()
            await until(lambda: reader.status().state is RemoteState.READY)
        own_etcd_server.stop()
        own_etcd_server.wipe()
        own_etcd_server.start()
        async with peer_in(own_etcd_server, number=1) as impostor:  # our own id
            await impostor.publish()
            await until(lambda: reader.status().state is RemoteState.REFUSED)
            assert counts(reader) == ALL


class Witness:
    """Writes down every state of the backends that the cluster west ever had."""

    def __init__(self, agent: Agent, seen: list[str]) -> None:
        self._agent = agent
        self._seen = seen

    def touch(self, key: object) -> None:
        self._seen.append(str(backends(self._agent)))

    def wake(self) -> None:
        """Being ready changes no row."""


async def test_a_restarted_agent_knows_what_a_cluster_that_is_away_said_last(
    own_etcd_server: EtcdServer, agent: Agent, tmp_path: Path
) -> None:
    await remember(own_etcd_server, agent)
    own_etcd_server.stop()
    late = Agent(tmp_path / "state")
    reader = late.reader()
    assert (counts(reader), backends(late)) == (ALL, ["10.2.0.7"])
    assert not late.read.services.is_ready  # a cache is never the whole truth
    async with running(reader.run(own_etcd_server.config)):
        await until(lambda: reader.status().state is RemoteState.FAILED)
        assert counts(reader) == ALL


async def test_a_cache_forgets_what_was_deleted(
    etcd_server: EtcdServer, agent: Agent, tmp_path: Path
) -> None:
    reader = agent.reader(save_every=3600)
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.publish()
        await until(lambda: agent.cache.load(WEST) is not None)
        await west.delete(SERVICES.prefix(WEST) + str(WEB))
        await until(lambda: reader.status().services == 0)
    assert counts(Agent(tmp_path / "state").reader()) == (
        "1 nodes, 0 services, 1 identities, 1 endpoints"
    )


async def test_a_cluster_that_leaves_takes_its_rows_its_id_and_its_cache_along(
    etcd_server: EtcdServer, agent: Agent, tmp_path: Path
) -> None:
    reader = agent.reader()
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)
    await reader.leave()
    assert backends(agent) == []
    assert agent.cache.load(WEST) is None
    agent.ids.claim(NORTH, kinds.decode_cluster_config(b'{"id":2}'))
    assert counts(Agent(tmp_path / "state").reader()) == NOTHING


async def test_a_cache_is_read_with_the_same_distrust(
    etcd_server: EtcdServer, agent: Agent, tmp_path: Path
) -> None:
    await remember(etcd_server, agent)
    (path,) = (tmp_path / "state").iterdir()
    ours = Agent(tmp_path / "state")
    ours.ids.claim(NORTH, kinds.decode_cluster_config(b'{"id":2}'))
    assert counts(ours.reader()) == NOTHING  # its id is another's by now
    path.write_bytes(path.read_bytes().replace(b'"clusterID":2', b'"clusterID":3'))
    assert counts(Agent(tmp_path / "state").reader()) == (
        "1 nodes, 0 services, 1 identities, 1 endpoints"
    )
    path.write_bytes(b"\x80" * 100)
    assert counts(Agent(tmp_path / "state").reader()) == NOTHING
    path.unlink()
    path.mkdir()
    assert counts(Agent(tmp_path / "state").reader()) == NOTHING


async def test_a_heart_that_stops_is_said_and_what_then_expires_is_not_believed(
    etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader(pace=FAST)
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)
        await until(lambda: state_of(reader).startswith("failed: no heartbeat"))
        # What hangs on the leases of an apiserver that is dead goes, the last heartbeat first.
        await west.delete(kinds.HEARTBEAT)
        await west.delete(SERVICES.prefix(WEST) + str(WEB))
        looks = Looks(reader)
        await until(looks.several)
        assert (reader.status().state, backends(agent)) == (RemoteState.FAILED, ["10.2.0.7"])
        await west.put_service(["10.2.0.8"])
        await west.beat("2")
        await until(lambda: backends(agent) == ["10.2.0.8"])


class Looks:
    """Waits until a reader has had the time to look at the heartbeat several times."""

    def __init__(self, reader: ClusterReader) -> None:
        self._least = reader.status().since + 6 * FAST.look_every
        self._reader = reader

    def several(self) -> bool:
        return self._reader.status().since >= self._least


async def test_a_heart_that_beats_keeps_a_cluster_ready(
    etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader(pace=FAST)
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)
        listings = reader.feeds["nodes"].health.listings

        async def beaten_for_long() -> bool:
            await west.beat(str(reader.status().since))
            return reader.status().since > 3 * FAST.heartbeat_lost

        await until(beaten_for_long)
        assert reader.status().state is RemoteState.READY
        assert reader.feeds["nodes"].health.listings == listings


async def test_a_cluster_whose_config_changes_is_read_as_the_new_one(
    etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader()
    async with peer_in(etcd_server) as west, running(reader.run(etcd_server.config)):
        await west.publish()
        await until(lambda: reader.status().state is RemoteState.READY)
        await west.introduce(4)
        await until(lambda: reader.status().id == 4)
        # Its rows still carry the old id: they are not its own any more.
        await until(lambda: reader.status().nodes == 0)
        assert names(reader)


async def test_bad_rows_are_named_for_as_long_as_they_are_bad(
    etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader()
    async with peer_in(etcd_server) as west:
        await west.publish()
        await west.put("cilium/state/nodes/v1/west/listed", b"{}")
        async with running(reader.run(etcd_server.config)):
            await until(lambda: reader.status().state is RemoteState.READY)
            assert names(reader) == ["west cilium/state/nodes/v1/west/listed"]
            await lie_live(west)
            await until(lambda: reader.status().bad_rows == 3)
            assert names(reader) == [
                "west cilium/state/nodes/v1/west/listed",
                "west cilium/state/services/v1/west/default/web",
                "west cilium/state/services/v1/west/not/a/name",
            ]
            # A row that was replaced by a bad one is gone, as for a reader that comes later.
            assert backends(agent) == []
            await west.put_service(["10.2.0.7"])
            await west.put_node("listed")
            await west.delete("cilium/state/services/v1/west/not/a/name")
            await until(lambda: not names(reader))
            assert backends(agent) == ["10.2.0.7"]
            assert reader.status().bad_rows == 0


async def lie_live(west: Peer) -> None:
    await west.put("cilium/state/services/v1/west/default/web", b"{}")
    await west.put("cilium/state/services/v1/west/not/a/name", b"{}")


async def test_a_bad_row_that_goes_while_nobody_watches_is_not_named_any_more(
    own_etcd_server: EtcdServer, agent: Agent
) -> None:
    reader = agent.reader()
    async with running(reader.run(own_etcd_server.config)):
        async with peer_in(own_etcd_server) as west:
            await west.publish()
            await west.put("cilium/state/nodes/v1/west/bad", b"{}")
            await until(lambda: bool(names(reader)))
        own_etcd_server.stop()
        own_etcd_server.wipe()
        own_etcd_server.start()
        async with peer_in(own_etcd_server) as west:
            await west.publish()
            await until(lambda: not names(reader))


async def test_a_file_that_makes_no_sense_is_said_and_withdraws_nothing(agent: Agent) -> None:
    reader = agent.reader()

    def read_config() -> EtcdConfig:
        raise UserError("west: endpoints: there is none")

    await reader.run(read_config)
    assert state_of(reader) == "failed: west: endpoints: there is none"


async def test_our_own_nodes_are_waited_for_even_if_there_are_none(
    etcd_server: EtcdServer, agent: Agent
) -> None:
    home = agent.reader(EAST)
    async with peer_in(etcd_server, "east", 1) as east, running(home.run(etcd_server.config)):
        await east.introduce()
        await east.finish()
        await home.nodes_known()
        assert home.status().nodes == 0

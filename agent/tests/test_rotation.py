"""When the key of a node is published, and when the one before may go. Time is virtual."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.kernel.wireguard.driver import Device, PeerConfig, PeerState
from agent.own import OwnNode
from agent.own_keys import OwnKeys
from agent.peer_keys import OVERLAP
from agent.rotation import Rotation
from agent.rows import NodeName, PeerKey
from agent.rules.cidrs import cidrs
from agent.rules.peers import peers
from agent.sessions import Sessions
from agent.tables import Derived, Read
from clustermesh.model import ClusterId, ClusterName, Node
from clustermesh.state import derive_whole
from clustermesh.tests.etcd_server import running

pytestmark = pytest.mark.looptime

LONG = OVERLAP + 100.0  # seconds: longer than a key that nobody needs is kept
EAST, WEST = ClusterName("east"), ClusterName("west")
NODES = [
    Node(
        WEST,
        ClusterId(2),
        f"n{number}",
        (("InternalIP", ip_address(f"192.0.2.{number}")),),
        (ip_network(f"10.2.{number}.0/24"),),
    )
    for number in (1, 2)
]
KEYS = {
    NodeName(WEST, f"n{number}"): (base64.b64encode(bytes([2 * number] * 32)).decode(),)
    for number in (1, 2)
}


class World:
    """An agent of the cluster east, whose devices have two peers: n1 and n2, of west."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._began = time.time()
        self.published = ""  # by our own etcd
        self.answers = {"n1": {"old", "new"}, "n2": {"old", "new"}}  # on which lanes
        self.refused: set[str] = set()  # devices that cannot be had
        self.max_age = 0.0  # seconds; 0: keys are never changed by age

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[None]:
        """One run of it."""
        self.keys = OwnKeys.open(self._directory, now=time.time())
        self.own, self._derived, self.retired = (
            OwnNode(encrypts=True, has_kernel=False),
            Derived(),
            0,
        )
        read = Read()
        self._sessions = Sessions(
            self._devices, self._derived.peers, read.sessions.writer("devices"), lambda: None
        )
        self.rotation = Rotation(
            self.keys,
            read.own_keys.writer("this node"),
            self._derived.peers,
            self._sessions,
            own=self.own,
            published=lambda: self.published,
            request=self._directory / "rotate",
            max_age=self.max_age,
            retired=self._retire,
        )
        derivation = derive_whole(
            (read.own_keys,),
            self._derived.peers.writer("rule"),
            lambda: peers(
                cidrs(NODES, EAST).items(),
                KEYS,
                {key: read.own_keys.rows(key)["this node"] for key in read.own_keys.keys()},
                own=EAST,
                port=51871,
                keepalive=0,
            ),
        )
        async with running(derivation), running(self._sessions.run()):
            await self._derived.peers.ready()
            async with running(self.rotation.run()):
                await asyncio.sleep(5)
                yield

    async def ask(self) -> None:
        """Have it change its key."""
        (self._directory / "rotate").touch()
        await asyncio.sleep(5)
        assert self.keys.previous is not None

    @property
    def known(self) -> str:
        """What is to be published."""
        return self.own.known.wireguard_public_key

    def publish(self) -> None:
        """The MeshNode was written, and everybody can read it."""
        self.published = self.known

    def _retire(self) -> None:
        self.retired += 1

    async def _devices(self) -> Mapping[str, Device]:
        """Of the peers that there should be; those that answer do so every two minutes."""
        now = asyncio.get_running_loop().time()
        found: dict[str, dict[str, PeerState]] = {}
        for key in self._derived.peers.keys():
            peer = self._derived.peers.first(key)
            assert peer is not None
            if key.device not in self.refused:
                lane = "old" if self._is_old(key) else "new"
                at = self._began + 120 * (now // 120) if lane in self.answers[peer.node] else 0.0
                config = PeerConfig(peer.endpoint, peer.allowed_ips, peer.keepalive)
                found.setdefault(key.device, {})[key.public_key] = PeerState(config, at)
        return {name: Device(b"", 0, states) for name, states in found.items()}

    def _is_old(self, key: PeerKey) -> bool:
        return self.keys.previous is not None and key.device == "cm_wg00"


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.published = OwnKeys.open(tmp_path, now=time.time()).current.public
    return made


async def test_the_last_key_goes_when_all_have_answered_by_the_new_one(world: World) -> None:
    async with world.agent():
        first = world.keys.current
        assert (world.known, world.rotation.waits_for) == (first.public, "")
        await world.ask()
        assert world.known == world.keys.current.public != first.public
        world.publish()
        await asyncio.sleep(9)
        assert world.rotation.waits_for == "the others to move"
        await asyncio.sleep(9)
        assert (world.keys.previous, world.rotation.waits_for) == (None, "")
        assert world.retired == 1


@pytest.mark.parametrize(("age", "is_changed"), [(3599, False), (3700, True)])
async def test_a_key_is_changed_when_it_is_old(tmp_path: Path, age: int, is_changed: bool) -> None:
    """How old it is outlasts the agent."""
    world = World(tmp_path)
    world.max_age = 3600.0
    first = OwnKeys.open(tmp_path, now=time.time() - age).current
    world.published = first.public
    async with world.agent():
        assert (world.known != first.public) == is_changed
        world.publish()
        await asyncio.sleep(LONG)
        assert world.keys.previous is None
        current = world.keys.current.public
        assert current == world.known
    async with world.agent():
        assert (world.known, world.rotation.waits_for) == (current, ""), "the new one is young"


async def test_the_last_key_stays_as_long_as_others_cannot_know_the_new_one(world: World) -> None:
    """The API server is away: neither time nor a new agent makes the old key useless."""
    world.answers = {"n1": {"old"}, "n2": set()}
    async with world.agent():
        await world.ask()
        await asyncio.sleep(LONG)
        assert "our own etcd to have the new key" in world.rotation.waits_for
        assert world.keys.previous is not None
    async with world.agent():
        await asyncio.sleep(LONG)
        assert world.keys.previous is not None
        world.answers = {"n1": {"old", "new"}, "n2": {"old", "new"}}
        world.publish()
        await asyncio.sleep(30)
        assert world.keys.previous is None


async def test_who_is_reached_by_the_last_key_only_keeps_it(world: World) -> None:
    """Its cluster's etcd is away, say, and with it what it would have to know."""
    world.answers["n1"] = {"old"}
    async with world.agent():
        await world.ask()
        world.publish()
        await asyncio.sleep(LONG)
        assert world.rotation.waits_for == (
            "west/n1, reached by the last key only: the new one is not known there, or a UDP port"
            " is closed"
        )
    async with world.agent():
        await asyncio.sleep(LONG)
        assert world.keys.previous is not None
        world.answers["n1"] = {"old", "new"}
        await asyncio.sleep(30)
        assert world.keys.previous is None


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_who_is_dead_keeps_no_key_for_ever(world: World, when: str) -> None:
    world.answers["n1"] = set() if when == "before" else {"old"}
    async with world.agent():
        await world.ask()
        world.publish()
        await asyncio.sleep(280)
        world.answers["n1"] = set()
        assert "west/n1" in world.rotation.waits_for
        await asyncio.sleep(250)
        assert world.keys.previous is None


async def test_a_key_is_published_only_when_its_lanes_are_open(world: World) -> None:
    world.refused = {"cm_wg10"}
    async with world.agent():
        first = world.known
        await world.ask()
        await asyncio.sleep(LONG)
        assert world.known == first
        assert world.rotation.waits_for == (
            "its lanes to west/n1, west/n2 to open: see clustermesh show peers"
        )
    async with world.agent():  # which tells the rest of what it knows nevertheless
        await asyncio.sleep(LONG)
        assert world.known == first
        world.refused = set()
        await asyncio.sleep(30)
        assert world.known == world.keys.current.public != first


async def test_an_older_key_that_is_published_again_is_kept(world: World) -> None:
    """An etcd that was restored from a backup, say."""
    world.answers = {"n1": set(), "n2": set()}
    async with world.agent():
        first = world.known
        await world.ask()
        world.publish()
        await asyncio.sleep(60)
        world.published = first
        await asyncio.sleep(LONG)
        assert world.keys.previous is not None


async def test_a_handshake_is_as_old_as_it_was_seen_to_be(world: World) -> None:
    """The clock of the day may have been set: what is new since the last look is new."""
    at = time.time() - LONG
    key = PeerKey("cm_wg00", KEYS[NodeName(WEST, "n1")][0])
    config = PeerConfig(None, (), 0)

    async def devices() -> Mapping[str, Device]:
        return {"cm_wg00": Device(b"", 0, {key.public_key: PeerState(config, at)})}

    sessions = Sessions(devices, Derived().peers, Read().sessions.writer("devices"), lambda: None)
    await sessions.look()
    assert sessions.working == set()
    await asyncio.sleep(10)
    at += 1
    await sessions.look()
    assert sessions.working == {key}
    await asyncio.sleep(180)
    await sessions.look()
    assert sessions.working == {key}
    await asyncio.sleep(30)
    assert sessions.working == set()

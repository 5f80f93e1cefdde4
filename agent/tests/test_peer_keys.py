"""Which keys the nodes of the mesh may be using. Time is virtual."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_network

import pytest

from agent.peer_keys import OVERLAP, PeerKeys
from agent.rows import NodeName
from agent.tables import Read
from clustermesh.model import ClusterId, ClusterName, IPNetwork, Node
from clustermesh.tests.etcd_server import running

WEST, NORTH = ClusterName("west"), ClusterName("north")


def key(number: int) -> str:
    """A public key, even or odd as its number is."""
    return base64.b64encode(bytes([number % 2, *number.to_bytes(4, "big"), *range(27)])).decode()


def pods(number: int) -> IPNetwork:
    return ip_network((0x0A000000 + 256 * number, 24))


def node(number: int, public_key: str, cluster: ClusterName = WEST) -> Node:
    return Node(
        cluster, ClusterId(2), f"n{number}", (), (pods(number),), wireguard_public_key=public_key
    )


class World:
    """What an agent reads of west and north, and what it makes of it."""

    def __init__(self, adopted: Mapping[str, tuple[IPNetwork, ...]] | None = None) -> None:
        read = Read()
        self.west, self.north = (read.nodes.writer(cluster) for cluster in (WEST, NORTH))
        self.north.list_done()
        self.writer = read.keys.writer("nodes")
        self.behind: set[NodeName] = set()
        self._keys = PeerKeys(read.nodes, self.writer, adopted or {}, lambda: self.behind)

    def run(self) -> AbstractAsyncContextManager[object]:
        return running(self._keys.run())

    async def publish(self, *nodes: Node) -> None:
        for each in nodes:
            (self.west if each.cluster == WEST else self.north).put(each.name, each)
        self.west.list_done()
        await asyncio.sleep(1)

    def shown(self) -> dict[str, str]:
        names = {key(n): f"k{n}" for n in range(20)}
        return {str(name): " ".join(names[k] for k in ks) for name, ks in self.writer.own.items()}


@pytest.mark.looptime
async def test_the_last_key_of_a_node_is_used_beside_its_new_one_for_a_while() -> None:
    world = World()
    async with world.run():
        await world.publish(node(1, key(2)), node(2, key(4)), node(1, key(8), NORTH))
        await world.publish(node(1, key(3)))
        assert world.shown() == {"west/n1": "k3 k2", "west/n2": "k4", "north/n1": "k8"}
        await asyncio.sleep(OVERLAP)
        assert world.shown() == {"west/n1": "k3", "west/n2": "k4", "north/n1": "k8"}
        world.west.delete("n1")
        await asyncio.sleep(1)
        assert world.shown() == {"west/n2": "k4", "north/n1": "k8"}


@pytest.mark.looptime
async def test_a_key_that_is_all_that_works_is_not_forgotten() -> None:
    world = World()
    async with world.run():
        await world.publish(node(1, key(2)), node(2, key(4)))
        await world.publish(node(1, key(3)), node(2, key(5)))
        world.behind = {NodeName(WEST, "n1")}
        await asyncio.sleep(10 * OVERLAP)
        assert world.shown() == {"west/n1": "k3 k2", "west/n2": "k5"}
        world.behind = set()
        await asyncio.sleep(20)
        assert world.shown() == {"west/n1": "k3", "west/n2": "k5"}


@pytest.mark.looptime
async def test_an_agent_that_starts_in_the_middle_goes_on_with_what_its_devices_know() -> None:
    world = World({key(2): (pods(1),), key(4): (pods(2),), key(6): (pods(3),)})
    async with world.run():
        await world.publish(node(1, key(3)), node(2, key(4)))
        assert world.shown() == {"west/n1": "k3 k2", "west/n2": "k4"}
        # Who comes later with addresses that were another's is another.
        await world.publish(node(3, key(7)))
        assert world.shown()["west/n3"] == "k7"


async def test_thousands_of_nodes_in_the_middle_of_a_rotation_take_no_time() -> None:
    """Seconds of the processor: it was 130 when each node was looked for among all."""
    many = range(5000)
    world = World({key(2 * n + age): (pods(n),) for n in many for age in (0, 1)})
    nodes = [node(n, key(2 * n + 1)) for n in many]
    for each in nodes:
        world.west.put(each.name, each)
    world.west.list_done()
    begun = time.process_time()
    async with world.run():
        while not world.writer.listed:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    took = time.process_time() - begun
    assert world.writer.own == {NodeName(WEST, f"n{n}"): (key(2 * n + 1), key(2 * n)) for n in many}
    assert took < 10.0

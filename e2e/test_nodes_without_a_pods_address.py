"""
Nodes that have no address among their pods' call pods of other clusters, and are called by them.

As beside Calico without encapsulation: what a node and its host-network pods send has the node's
own address. Every device but ours is strict about reverse paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from clustermesh.sandbox.model import Node

from .capture import Capture
from .conftest import NewMesh
from .mesh import CLI, Mesh, eventually
from .reach import FULL, seen_by_tcp, seen_by_udp, sent_back
from .topologies import TOPOLOGIES
from .topologies.node import make

CALICO = next(t for t in TOPOLOGIES if t.name.startswith("Calico without encapsulation"))
MODES = {"tunnel": "--routing=tunnel", "encrypted": "--encryption=wireguard"}


@pytest.fixture(scope="module", params=MODES)
def mesh(request: pytest.FixtureRequest, new_mesh: NewMesh) -> Mesh:
    made = new_mesh(f"hosts-{request.param}", "--nodes=1", "--pods=1", MODES[request.param])
    sandbox = made.world.sandbox
    for node in made.nodes:
        made.stop(node.place)
        places = f"--bpffs={sandbox.bpffs(node)}", f"--state-dir={sandbox.state(node)}"
        made.run(node.place, CLI, "cleanup", *places)
    for node in made.nodes:
        make(sandbox, sandbox.cluster(node.cluster), node, CALICO)
    made.start(*(node.place for node in made.nodes))
    for here, there in ends(made):
        way = partial(seen_by_tcp, sandbox.namespace(here.pods[0]), there.pods[0].addresses.v4)
        eventually("a way", partial(way, patience=1.0))
    return made


def ends(mesh: Mesh) -> Iterator[tuple[Node, Node]]:
    """Each node, and the one of the other cluster."""
    first, second = mesh.nodes
    yield from ((first, second), (second, first))


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_reaches_pods_from_its_own_address(mesh: Mesh, family: int) -> None:
    v = family == 6
    with Capture(mesh) as capture:
        for here, there in ends(mesh):
            namespace, server = mesh.world.sandbox.namespace(here), there.pods[0].addresses[v]
            assert seen_by_tcp(namespace, server) == str(here.addresses[v])
            for size in (100, FULL[family], 9000):
                assert seen_by_udp(namespace, server, size) == str(here.addresses[v])
            assert sent_back(namespace, server, 1 << 20) == 1 << 20
    assert capture.plain == []


@pytest.mark.parametrize("family", [4, 6])
def test_pods_reach_a_node_from_their_own_addresses(mesh: Mesh, family: int) -> None:
    """So they do host-network pods, which have the address of their node."""
    v = family == 6
    with Capture(mesh) as capture:
        for here, there in ends(mesh):
            pod, server = here.pods[0], there.addresses[v]
            namespace = mesh.world.sandbox.namespace(pod)
            identity = ("--cluster", there.cluster, "--node", there.name, "--pod", "host")
            echo = ("python3", "-m", "clustermesh.sandbox.echo", *identity)
            with mesh.running(there.place, *echo):
                eventually("it listens", partial(seen_by_tcp, namespace, server, patience=1.0))
                assert seen_by_tcp(namespace, server) == str(pod.addresses[v])
                for size in (100, FULL[family], 9000):
                    assert seen_by_udp(namespace, server, size) == str(pod.addresses[v])
                assert sent_back(namespace, server, 1 << 20) == 1 << 20
    assert capture.plain == []


def test_what_a_node_itself_sends_to_another_goes_as_without_us(mesh: Mesh) -> None:
    """All that wraps and encrypts among it."""
    for here, there in ends(mesh):
        for address in there.addresses:
            family = "-6" if address.version == 6 else "-4"
            looked_up = mesh.run(here.place, "ip", family, "route", "get", str(address))
            assert " dev eth0 " in looked_up

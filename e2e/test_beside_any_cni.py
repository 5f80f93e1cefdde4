"""
Pods of other clusters are reached beside any CNI, and none of its rules is touched.

    pytest e2e/test_beside_any_cni.py --write-compatibility    writes the table into the documents

Three clusters are a triangle, each side of which is another routing: so one start of its agents is
a cell of each. Every node is strict about reverse paths (rp_filter=1 on all interfaces). The table
is made of what was found here; the last test fails when the documents say something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import product
from typing import Final

import pytest

from clustermesh.model import IPAddress
from clustermesh.sandbox.model import Addresses, Node, Place

from .compatibility import (
    ENCRYPTIONS,
    ROUTINGS,
    Column,
    Encryption,
    Findings,
    Routing,
    documented,
    write,
)
from .conftest import NewMesh
from .mesh import CLI, Mesh, eventually
from .reach import FULL, seen_by_tcp, seen_by_udp, sent_back, told_mtu
from .topologies import TOPOLOGIES
from .topologies.node import dropped_as_invalid, make, snapshot
from .topologies.topology import Layout, Topology

_SIDES: Final[Mapping[Routing, tuple[int, int]]] = {
    "tunnel": (1, 2),
    "direct": (1, 3),
    "native": (2, 3),
}
_SETTINGS: Final = (
    "cluster1:cluster-routing=cluster2=tunnel,cluster3=direct",
    "cluster2:cluster-routing=cluster1=tunnel",
    "cluster3:cluster-routing=cluster1=direct",
)
"""What is not native, which it is by default: then the underlay has a router that knows pods."""


class Beside:
    """Agents that run beside a CNI, on every node of a mesh."""

    def __init__(self, mesh: Mesh, encryption: Encryption, topology: Topology) -> None:
        self.mesh = mesh
        self.topology = topology
        self.columns = [Column(encryption, routing) for routing in ROUTINGS]
        self._agents = [node.place for node in mesh.nodes]

    def install(self) -> None:
        """Make the nodes anew, and start agents on them."""
        if any(part.process for part in self.mesh.parts(*self._agents)):
            self.uninstall()
        sandbox = self.mesh.world.sandbox
        for node in self.mesh.nodes:
            make(sandbox, sandbox.cluster(node.cluster), node, self.topology)
        self.before = self.snapshots()
        self.mesh.start(*self._agents)
        # Nodes that were made anew have new keys: the others' first handshakes may come too early.
        for here, there in self.ends():
            namespace, server = sandbox.namespace(here.pods[0]), there.pods[0].addresses.v4
            eventually("a handshake", partial(seen_by_tcp, namespace, server, patience=1.0))

    def uninstall(self) -> None:
        """Stop the agents, and take everything of ours off the nodes."""
        self.stop()
        sandbox = self.mesh.world.sandbox
        running = [
            self.mesh.begin(
                *(node.place, CLI, "cleanup"),
                *(f"--bpffs={sandbox.bpffs(node)}", f"--state-dir={sandbox.state(node)}"),
            )
            for node in self.mesh.nodes
        ]
        for process in running:
            said, _ = process.communicate(timeout=60)
            assert "nothing of clustermesh is left" in said

    def stop(self) -> None:
        """Stop the agents, which leaves everything as it is."""
        self.mesh.stop(*self._agents)

    def snapshots(self) -> dict[str, str]:
        """What the nodes are like, by their places."""
        sandbox = self.mesh.world.sandbox
        return {node.place: snapshot(sandbox, node) for node in self.mesh.nodes}

    def ends(self, *columns: Column) -> Iterator[tuple[Node, Node]]:
        """Both nodes of the sides of the triangle that are these columns, or of all: both ways."""
        for column in columns or self.columns:
            first, second = (self.mesh.nodes[c - 1] for c in _SIDES[column.routing])
            yield first, second
            yield second, first


@pytest.fixture(scope="module")
def mesh_of(new_mesh: NewMesh) -> Callable[[Encryption], Mesh]:
    """The mesh with that encryption, which is brought up once."""
    flags = ("--clusters=3", "--nodes=1", "--pods=1", "--routing=native")
    settings = [f"--agent={setting}" for setting in _SETTINGS]
    return cache(
        lambda encryption: new_mesh(
            f"beside-{encryption}", *flags, *settings, f"--encryption={encryption}"
        )
    )


@pytest.fixture(
    scope="module",
    params=product(ENCRYPTIONS, TOPOLOGIES),
    ids=lambda both: f"{both[0]}, {both[1].name}",
)
def beside(request: pytest.FixtureRequest, mesh_of: Callable[[Encryption], Mesh]) -> Beside:
    encryption, topology = request.param
    made = Beside(mesh_of(encryption), encryption, topology)
    made.install()
    return made


@pytest.fixture(params=ROUTINGS)
def column(request: pytest.FixtureRequest, beside: Beside) -> Column:
    """One of those that are looked at."""
    return next(column for column in beside.columns if column.routing == request.param)


@pytest.mark.parametrize("family", [4, 6])
def test_pods_are_seen_with_their_own_addresses(
    beside: Beside, column: Column, family: int, findings: Findings
) -> None:
    with findings.noting(beside.topology, [column], "pods", [family]):
        for here, there in beside.ends(column):
            client, server = here.pods[0], there.pods[0]
            _call(beside, client, server.addresses[family == 6], client.addresses[family == 6])


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_every_size_arrive(
    beside: Beside, column: Column, family: int, findings: Findings
) -> None:
    """What is too large for the path is answered, and sent again in smaller pieces."""
    with findings.noting(beside.topology, [column], "sizes", [family]):
        for here, there in beside.ends(column):
            server = there.pods[0].addresses[family == 6]
            for client in (here.pods[0], here):
                namespace = beside.mesh.world.sandbox.namespace(client)
                for size in (1200, FULL[family], 9000):
                    seen_by_udp(namespace, server, size)
                assert told_mtu(namespace, server) == column.mtu
                assert sent_back(namespace, server, 1 << 20) == 1 << 20


@pytest.mark.parametrize("family", [4, 6])
def test_nodes_reach_pods(beside: Beside, column: Column, family: int, findings: Findings) -> None:
    with findings.noting(beside.topology, [column], "nodes", [family]):
        for here, there in beside.ends(column):
            own, server = _address(beside, here, column), there.pods[0].addresses
            _call(beside, here, server[family == 6], own[family == 6])


def test_conntrack_takes_nothing_for_invalid(beside: Beside, findings: Findings) -> None:
    """It sees both directions of every connection, on both nodes."""
    rules = "".join(rules.text for rules in beside.topology.rules)
    with findings.noting(beside.topology, beside.columns, "conntrack"):
        for node in beside.mesh.nodes:
            counts = dropped_as_invalid(beside.mesh.world.sandbox, node)
            assert bool(counts) == ("--ctstate INVALID" in rules)
            assert not any(counts.values()), counts


@pytest.mark.parametrize("family", [4, 6])
def test_it_is_our_table_that_keeps_the_addresses(beside: Beside, family: int) -> None:
    """The control: without it, and with no agent to put it back, they are hidden or cut off."""
    if not beside.topology.masquerades:
        pytest.skip("nothing masquerades pods here")
    beside.stop()
    for node in beside.mesh.nodes:
        beside.mesh.attempt(node.place, "nft", "delete", "table", "inet", "clustermesh")
    for here, there in list(beside.ends())[::2]:
        own, server = (node.pods[0].addresses[family == 6] for node in (here, there))
        namespace = beside.mesh.world.sandbox.namespace(here.pods[0])
        with pytest.raises(AssertionError):
            assert seen_by_tcp(namespace, server, patience=1.0) == str(own)


def test_nothing_is_left_and_nothing_of_others_is_changed(
    beside: Beside, findings: Findings
) -> None:
    with findings.noting(beside.topology, beside.columns, "uninstall"):
        beside.uninstall()
        after = beside.snapshots()
        for place, text in beside.before.items():
            assert after[place].splitlines() == text.splitlines(), place


def _call(beside: Beside, client: Place, server: IPAddress, own: IPAddress) -> None:
    namespace = beside.mesh.world.sandbox.namespace(client)
    assert seen_by_tcp(namespace, server) == str(own)
    assert seen_by_udp(namespace, server, 100) == str(own)


def _address(beside: Beside, node: Node, column: Column) -> Addresses:
    """
    What a node calls pods of other clusters from: an address in its own pod CIDR, if it has one.

    Its own where the CNI gives it no other, and where we have no route.
    """
    if column.encryption == "none" and column.routing == "native":
        return node.addresses
    topology = beside.topology
    has_one = topology.layout is not Layout.PROXY_ARP or topology.tunnel_address
    return node.gateways if has_one else node.addresses


def test_the_documents_say_what_was_found(
    findings: Findings, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--write-compatibility"):
        write(findings.table())
    said, found = documented(), findings.cells()
    assert {key: said.get(key) for key in found} == found

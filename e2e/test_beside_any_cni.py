"""
Pods of other clusters are reached beside any CNI, and none of its rules is touched.

    pytest e2e/test_beside_any_cni.py --write-compatibility    writes the table into the documents

Every node is strict about reverse paths (rp_filter=1 on all interfaces). The table is made of what
was found here; the last test fails when the documents say something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product

import pytest

from clustermesh.model import IPAddress
from clustermesh.sandbox.model import Node, Place

from .compatibility import COLUMNS, Column, Findings, documented, write
from .conftest import NewMesh
from .mesh import CLI, Mesh, eventually
from .reach import FULL, seen_by_tcp, seen_by_udp, sent_back, told_mtu
from .topologies import TOPOLOGIES
from .topologies.node import dropped_as_invalid, make, snapshot
from .topologies.topology import Layout, Topology


class Beside:
    """Agents that run beside a CNI, on every node of a mesh."""

    def __init__(self, mesh: Mesh, column: Column, topology: Topology) -> None:
        self.mesh = mesh
        self.column = column
        self.topology = topology
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

    def ends(self) -> Iterator[tuple[Node, Node]]:
        """Each node, and one of the other cluster."""
        first, second = self.mesh.nodes
        yield first, second
        yield second, first


@pytest.fixture(scope="module")
def mesh_of(new_mesh: NewMesh) -> Callable[[Column], Mesh]:
    """The mesh of a column, which is brought up once."""
    return cache(
        lambda column: new_mesh(
            f"beside-{column.name.lower()}", "--nodes=1", "--pods=1", *column.flags
        )
    )


@pytest.fixture(
    scope="module",
    params=product(COLUMNS, TOPOLOGIES),
    ids=lambda both: f"{both[0].name}, {both[1].name}",
)
def beside(request: pytest.FixtureRequest, mesh_of: Callable[[Column], Mesh]) -> Beside:
    column, topology = request.param
    made = Beside(mesh_of(column), column, topology)
    made.install()
    return made


@pytest.mark.parametrize("family", [4, 6])
def test_pods_are_seen_with_their_own_addresses(
    beside: Beside, family: int, findings: Findings
) -> None:
    with findings.noting(beside.column, beside.topology, family, "pods"):
        for here, there in beside.ends():
            client, server = here.pods[0], there.pods[0]
            _call(beside, client, server.addresses[family == 6], client.addresses[family == 6])


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_every_size_arrive(beside: Beside, family: int, findings: Findings) -> None:
    """What is too large for the path is answered, and sent again in smaller pieces."""
    with findings.noting(beside.column, beside.topology, family, "sizes"):
        for here, there in beside.ends():
            server = there.pods[0].addresses[family == 6]
            for client in (here.pods[0], here):
                if client is here and not _has_address(beside):
                    continue
                namespace = beside.mesh.world.sandbox.namespace(client)
                for size in (1200, FULL[family], 9000):
                    seen_by_udp(namespace, server, size)
                assert told_mtu(namespace, server) == beside.column.mtu
                assert sent_back(namespace, server, 1 << 20) == 1 << 20


@pytest.mark.parametrize("family", [4, 6])
def test_nodes_reach_pods(beside: Beside, family: int, findings: Findings) -> None:
    """By an address of their own pod CIDR, which is the only one that others can answer to."""
    if not _has_address(beside):
        pytest.skip("the node has no address in its pod CIDR")
    with findings.noting(beside.column, beside.topology, family, "nodes"):
        for here, there in beside.ends():
            server = there.pods[0].addresses[family == 6]
            _call(beside, here, server, here.gateways[family == 6])


def test_conntrack_takes_nothing_for_invalid(beside: Beside, findings: Findings) -> None:
    """It sees both directions of every connection, on both nodes."""
    rules = "".join(rules.text for rules in beside.topology.rules)
    with findings.noting(beside.column, beside.topology, None, "conntrack"):
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
    here, there = (node.pods[0] for node in beside.mesh.nodes)
    namespace = beside.mesh.world.sandbox.namespace(here)
    own, server = (pod.addresses[family == 6] for pod in (here, there))
    with pytest.raises(AssertionError):
        assert seen_by_tcp(namespace, server, patience=1.0) == str(own)


def test_nothing_is_left_and_nothing_of_others_is_changed(
    beside: Beside, findings: Findings
) -> None:
    with findings.noting(beside.column, beside.topology, None, "uninstall"):
        beside.uninstall()
        after = beside.snapshots()
        for place, text in beside.before.items():
            assert after[place].splitlines() == text.splitlines(), place


def _call(beside: Beside, client: Place, server: IPAddress, own: IPAddress) -> None:
    namespace = beside.mesh.world.sandbox.namespace(client)
    assert seen_by_tcp(namespace, server) == str(own)
    assert seen_by_udp(namespace, server, 100) == str(own)


def _has_address(beside: Beside) -> bool:
    topology = beside.topology
    return topology.layout is not Layout.PROXY_ARP or bool(topology.tunnel_address)


def test_the_documents_say_what_was_found(
    findings: Findings, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--write-compatibility"):
        write(findings.table())
    said, found = documented(), findings.cells()
    assert {key: said.get(key) for key in found} == found

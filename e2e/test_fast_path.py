"""With a fast path traffic is as right as without, beside a node's connection tracking and NAT."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Final

import pytest

from agent.kernel import inspect, pins
from agent.kernel.bpf import Map
from agent.kernel.layouts import Direction
from clustermesh.model import IPAddress
from clustermesh.sandbox.model import Node

from .conftest import NewMesh
from .mesh import CLI, Mesh, eventually, same
from .watches import Calls

CLIENT: Final = "cluster1/node1/pod1"
NODES: Final = ("cluster1/node1", "cluster2/node1")

_RULES: Final = """
table inet others {
    chain forward {
        type filter hook forward priority 0;
        ct state invalid counter drop
    }
    chain prerouting {
        type nat hook prerouting priority -100;
        ip daddr 10.250.0.1 tcp dport 80 dnat ip to 10.2.1.11:8080
        ip daddr 10.250.0.1 udp dport 80 dnat ip to 10.2.1.11:8080
    }
}
"""
"""What kube-proxy does, whose chain of rules drops what connection tracking calls invalid."""


@pytest.fixture(scope="module", params=["tunnel", "direct"])
def mesh(request: pytest.FixtureRequest, new_mesh: NewMesh) -> Mesh:
    """Clusters of one node with two pods, which the fast path knows already."""
    flags = ("--nodes=1", "--pods=2", f"--routing={request.param}", "--agent=fast-path=on")
    made = new_mesh(f"fast-{request.param}", *flags)
    for place in NODES:
        made.run(place, "nft", _RULES)
    meet(made)
    return made


def meet(mesh: Mesh) -> None:
    """Have the addresses of all pods resolved, and wait until they are on the fast path."""
    pods = [pod for node in mesh.nodes for pod in node.pods]
    for one, other in itertools.permutations(pods, 2):
        if one.cluster != other.cluster:
            for address in other.addresses:
                mesh.run(one.place, "ping", "-c1", "-w5", str(address))
    for node in mesh.nodes:
        wanted = [ip for pod in node.pods for ip in pod.addresses]
        eventually(f"the pods of {node.place} are known", partial(has_pods, mesh, node, wanted))


def has_pods(mesh: Mesh, node: Node, wanted: Iterable[IPAddress]) -> bool:
    """Whether just these are on the fast path."""
    held = inspect.pods(mesh.world.sandbox.bpffs(node))
    return same(dict.fromkeys(held), dict.fromkeys(wanted))


def invalid(mesh: Mesh) -> int:
    """Packets that the nodes have dropped because connection tracking did not understand them."""
    shown = [
        mesh.run(place, "nft", "list", "chain", "inet", "others", "forward") for place in NODES
    ]
    return sum(int(text.partition("counter packets ")[2].split()[0]) for text in shown)


@contextmanager
def carried(mesh: Mesh, at_least: int) -> Iterator[None]:
    """Both nodes carry so many packets in both directions past their stacks, and drop none."""
    before = {
        place: inspect.fast_counters(mesh.world.sandbox.bpffs(mesh.node(place))) for place in NODES
    }
    dropped = invalid(mesh)
    yield
    for place in NODES:
        after = inspect.fast_counters(mesh.world.sandbox.bpffs(mesh.node(place)))
        for way in Direction:
            assert after[way].packets - before[place][way].packets >= at_least, (place, way)
    assert invalid(mesh) == dropped


@pytest.mark.parametrize("family", [4, 6])
def test_connections_either_way_are_carried_past_the_stack(mesh: Mesh, family: int) -> None:
    one, other = (mesh.node(place).pods[0] for place in NODES)
    for client, server in ((one, other), (other, one)):
        address = server.addresses[family == 6]
        with carried(mesh, 100):
            report = mesh.call(client.place, "tcp", address, 8080, "--count=40")
            assert report["pods"] == {server.place: 40}, report
            assert set(report["clients"]) == {str(client.addresses[family == 6])}


def test_datagrams_are_answered_and_carried_once_both_sides_have_sent(mesh: Mesh) -> None:
    server = mesh.node("cluster2/node1").pods[1]
    for address in server.addresses:
        with carried(mesh, 50):
            said = mesh.run(CLIENT, "python3", "-c", _ASK_60_TIMES, str(address))
            assert int(said) == 60


def test_what_a_node_translates_still_comes_back_translated(mesh: Mesh) -> None:
    """A ClusterIP that kube-proxy leads to a pod of another cluster, which answers directly."""
    before = invalid(mesh)
    for mode in ("tcp", "udp"):
        report = mesh.call(CLIENT, mode, "10.250.0.1", 80, "--count=30", "--connected")
        assert report["pods"] == {"cluster2/node1/pod1": 30}, report
    assert invalid(mesh) == before


def test_a_connection_that_is_forgotten_goes_on_by_the_stack(mesh: Mesh) -> None:
    server = mesh.node("cluster2/node1").pods[0]
    with Calls(mesh, CLIENT, "stream", server.addresses.v4, 8081, every=0.002) as stream:
        for place in NODES:
            path = pins.current(mesh.world.sandbox.bpffs(mesh.node(place)))
            assert path is not None
            with closing(Map.pinned(path / "flows")) as flows:
                eventually("it is on the fast path", partial(forget, flows))
        # A FIN that comes first of all is nothing that connection tracking would pick up.
        before = mesh.segments_received(CLIENT)
        eventually("it goes on", lambda: mesh.segments_received(CLIENT) > before + 10)
    assert stream.report["broken"] is None, stream.report
    assert stream.report["failed"] == 0, stream.report


def forget(flows: Map) -> bytes:
    """Delete all that there is."""
    keys, _ = flows.read()
    flows.delete(keys)
    return keys


def test_the_fast_path_outlives_its_agents(mesh: Mesh) -> None:
    server = mesh.node("cluster2/node1").pods[0]
    with Calls(mesh, CLIENT, "stream", server.addresses.v6, 8081, every=0.002) as stream:
        mesh.stop(*NODES, kill=True)
        with carried(mesh, 50):
            mesh.call(CLIENT, "tcp", server.addresses.v4, 8080, "--count=40")
        with carried(mesh, 50):
            mesh.start(*NODES)
            mesh.call(CLIENT, "tcp", server.addresses.v4, 8080, "--count=40")
    assert stream.report["broken"] is None, stream.report
    assert stream.report["failed"] == 0, stream.report


def test_one_direction_alone_would_be_dropped(mesh: Mesh) -> None:
    """So the tests above would show it."""
    client, server = (mesh.node(place).pods[0] for place in NODES)
    bpffs = mesh.world.sandbox.bpffs(mesh.node("cluster2/node1"))
    before = invalid(mesh)
    for pin in (bpffs / "clustermesh/links").glob("pod_ingress-*"):
        pin.unlink()
    try:
        report = mesh.call(client.place, "tcp", server.addresses.v4, 8080, "--timeout=1")
        assert report["failed"] == 1, report
        assert invalid(mesh) > before
    finally:
        mesh.stop("cluster2/node1")
        mesh.start("cluster2/node1")
    with carried(mesh, 5):
        mesh.call(client.place, "tcp", server.addresses.v4, 8080, "--count=5")


def test_packets_that_do_not_fit_are_answered(mesh: Mesh) -> None:
    for address in mesh.node("cluster2/node1").pods[0].addresses:
        assert int(mesh.run(CLIENT, "python3", "-c", _SEND_MUCH, str(address))) == 4 << 20


def test_rules_that_go_by_marks_are_heeded(mesh: Mesh) -> None:
    """Whoever marks packets does so in netfilter, which the fast path goes around."""
    place, server = NODES[0], mesh.node(NODES[1]).pods[0]
    wanted = [ip for pod in mesh.node(place).pods for ip in pod.addresses]
    change_rules(mesh, "add fwmark 0x77 priority 30000 lookup main")  # after ours
    change_rules(mesh, "add fwmark 0x77 priority 100 lookup 77")
    try:
        eventually("no pod is on the fast path", partial(has_pods, mesh, mesh.node(place), []))
        assert "the fast path is off: routing rules go by marks: 100" in mesh.warnings(place)
        assert mesh.call(CLIENT, "tcp", server.addresses.v4, 8080)["pods"] == {server.place: 1}
    finally:
        change_rules(mesh, "delete priority 100")
    eventually("they are again", partial(has_pods, mesh, mesh.node(place), wanted))
    assert "fast path" not in mesh.warnings(place)
    change_rules(mesh, "delete priority 30000")


def change_rules(mesh: Mesh, how: str) -> None:
    mesh.run(NODES[0], "ip", "rule", *how.split())


def test_a_pod_that_goes_leaves_nothing_behind(mesh: Mesh) -> None:
    node = mesh.node("cluster2/node1")
    links = mesh.world.sandbox.bpffs(node) / "clustermesh/links"
    before = {path.name for path in links.iterdir()}
    mesh.run(node.place, "ip", "link", "del", node.pods[1].host_device)
    wanted: list[IPAddress] = list(node.pods[0].addresses)
    eventually("it is off the fast path", partial(has_pods, mesh, node, wanted))
    gone = before - {path.name for path in links.iterdir()}
    assert [name.partition("-")[0] for name in gone] == ["pod_ingress"]


def test_cleanup_takes_the_fast_path_away(mesh: Mesh) -> None:
    """The last of this module: the nodes have left the mesh."""
    mesh.stop(*NODES)
    for place in NODES:
        flags = (f"--bpffs={mesh.world.sandbox.bpffs(mesh.node(place))}", "--state-dir=/nowhere")
        mesh.run(place, CLI, "cleanup", *flags)
        assert "ingress" not in mesh.run(place, "bpftool", "net")
        assert "pod1" in mesh.run(place, "ip", "link")


# 60 datagrams from one socket to the server, which answers each; prints how many answers came.
_ASK_60_TIMES: Final = """
import socket, sys
asking = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(5)
for _ in range(60):
    asking.sendto(b"?", (sys.argv[1], 8080))
    asking.recv(4096)
print(60)
"""

# One connection to the server that sends everything back; prints how many bytes came.
_SEND_MUCH: Final = """
import socket, sys, threading
connection = socket.create_connection((sys.argv[1], 8081), 10)
def send():
    connection.sendall(bytes(4 << 20))
    connection.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
received = 0
while data := connection.recv(1 << 20):
    received += len(data)
print(received)
"""

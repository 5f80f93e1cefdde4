"""Pods of different clusters reach each other node to node, by either routing."""

from __future__ import annotations

import itertools

import pytest

from .conftest import NewMesh
from .mesh import Mesh, service


@pytest.fixture(scope="module", params=["tunnel", "direct"])
def mesh(request: pytest.FixtureRequest, new_mesh: NewMesh) -> Mesh:
    made = new_mesh(request.param, "--pods=1", f"--routing={request.param}")
    for cluster in ("cluster1", "cluster2"):
        made.apply(cluster, service("echo"))
    made.wait_for_backends("echo", cluster1=2, cluster2=2)
    return made


@pytest.mark.parametrize("family", [4, 6])
def test_every_pod_reaches_every_pod_of_the_other_cluster(mesh: Mesh, family: int) -> None:
    pods = [pod for node in mesh.nodes for pod in node.pods]
    for client, server in itertools.permutations(pods, 2):
        if client.cluster != server.cluster:
            address = server.addresses[family == 6]
            for mode in ("tcp", "udp"):
                report = mesh.call(client.place, mode, address, 8080)
                assert report["pods"] == {server.place: 1}, (client.place, mode, report)
                assert set(report["clients"]) == {str(client.addresses[family == 6])}


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_any_size_arrive(mesh: Mesh, family: int) -> None:
    """A tunnel takes bytes of every packet: what is too large is answered with what would fit."""
    server = mesh.world.sandbox.cluster("cluster2").nodes[1].pods[0]
    address = str(server.addresses[family == 6])
    for size in (64, 1300, 1400, 1472, 3000, 9000):
        mesh.run("cluster1/node1/pod1", "ping", "-n", "-c3", "-i0.05", "-s", str(size), address)
    said = mesh.run("cluster1/node1/pod1", "python3", "-c", _SEND_MUCH, address)
    assert int(said) == 4 << 20


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_reaches_the_pods_of_the_other_cluster(mesh: Mesh, family: int) -> None:
    """So do pods on the host's network, and probes."""
    for client, server in itertools.permutations(mesh.nodes, 2):
        if client.cluster != server.cluster:
            pod = server.pods[0]
            report = mesh.call(client.place, "tcp", pod.addresses[family == 6], 8080)
            assert report["pods"] == {pod.place: 1}, (client.place, report)


@pytest.mark.parametrize("client", ["cluster1/node1", "cluster2/node2/pod1"])
def test_nodes_and_pods_are_balanced_alike(mesh: Mesh, client: str) -> None:
    for address in mesh.cluster_ips(client.partition("/")[0], "echo"):
        assert mesh.answers(client, "tcp", address, 80) == {"cluster1", "cluster2"}


# One connection to the server that sends everything back; prints how many bytes came.
_SEND_MUCH = """
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

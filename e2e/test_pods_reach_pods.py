"""Pods of different clusters reach each other node to node, by every routing, over every family."""

from __future__ import annotations

import itertools
import subprocess
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from clustermesh.sandbox.namespace import run_in_new

from .conftest import NewMesh
from .mesh import Mesh, service

_MESHES: Final = {
    "tunnel": ("--routing=tunnel",),
    "direct": ("--routing=direct",),
    "native": ("--routing=native",),
    "by-cluster": ("--agent=cluster-routing=cluster1=direct,cluster2=direct",),
    "tunnel-6": ("--family=6", "--agent=tunnel-port=4790", "--agent=mtu=1400"),
    "direct-6": ("--routing=direct", "--family=6"),
    "geneve": ("--agent=tunnel-protocol=geneve",),
}
_ON_OTHER_KERNELS: Final = {"tunnel", "direct-6", "geneve"}


def _mesh(name: str) -> ParameterSet:
    return pytest.param(name, marks=[pytest.mark.vm] if name in _ON_OTHER_KERNELS else [])


@pytest.fixture(scope="module", params=map(_mesh, _MESHES))
def mesh(request: pytest.FixtureRequest, new_mesh: NewMesh) -> Mesh:
    if request.param == "geneve" and not run_in_new(_has_geneve):
        pytest.skip("this kernel has no Geneve")
    made = new_mesh(request.param, "--pods=1", *_MESHES[request.param])
    for cluster in ("cluster1", "cluster2"):
        made.apply(cluster, service("echo"))
    made.wait_for_backends("echo", cluster1=2, cluster2=2)
    return made


def _has_geneve() -> bool:
    command = ("ip", "link", "add", "made", "type", "geneve", "external")
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_every_pod_reaches_every_pod_of_the_other_cluster(mesh: Mesh) -> None:
    pods = [pod for node in mesh.nodes for pod in node.pods]
    for client, server in itertools.permutations(pods, 2):
        if client.cluster == server.cluster:
            continue
        cluster = mesh.world.sandbox.cluster(server.cluster)
        for own, address in zip(
            cluster.used(client.addresses), cluster.used(server.addresses), strict=True
        ):
            for mode in ("tcp", "udp"):
                report = mesh.call(client.place, mode, address, 8080)
                assert report["pods"] == {server.place: 1}, (client.place, mode, report)
                assert set(report["clients"]) == {str(own)}


def test_packets_of_any_size_arrive(mesh: Mesh) -> None:
    """A tunnel takes bytes of every packet: what is too large is answered with what would fit."""
    cluster = mesh.world.sandbox.cluster("cluster2")
    for address in cluster.used(cluster.nodes[1].pods[0].addresses):
        for size in (64, 1300, 1400, 1472, 3000, 9000):
            ping = ("ping", "-n", "-c3", "-i0.05", "-s", str(size), str(address))
            mesh.run("cluster1/node1/pod1", *ping)
        said = mesh.run("cluster1/node1/pod1", "python3", "-c", _SEND_MUCH, str(address))
        assert int(said) == 4 << 20


def test_a_node_reaches_the_pods_of_the_other_cluster(mesh: Mesh) -> None:
    """So do pods on the host's network, and probes."""
    for client, server in itertools.permutations(mesh.nodes, 2):
        if client.cluster != server.cluster:
            pod = server.pods[0]
            for address in mesh.world.sandbox.cluster(server.cluster).used(pod.addresses):
                report = mesh.call(client.place, "tcp", address, 8080)
                assert report["pods"] == {pod.place: 1}, (client.place, report)


@pytest.mark.parametrize("client", ["cluster1/node1", "cluster2/node2/pod1"])
def test_nodes_and_pods_are_balanced_alike(mesh: Mesh, client: str) -> None:
    for address in mesh.cluster_ips(client.partition("/")[0], "echo"):
        assert mesh.answers(client, "tcp", address, 80) == {"cluster1", "cluster2"}


def test_show_routes_says_how_each_cluster_is_reached(mesh: Mesh) -> None:
    sandbox = mesh.world.sandbox
    for node in mesh.nodes:
        wanted = "direct" if "cluster1=direct" in "".join(sandbox.agent) else sandbox.routing
        rows = [(row["for"], row["routing"]) for row in mesh.table(node.place, "routes")]
        assert rows.count(("all", wanted)) == 2 * len(sandbox.versions)
        assert rows.count(("pods", "tunnel")) == (len(rows) / 2 if wanted == "tunnel" else 0)
        for version in sandbox.versions:
            for table, ways in (("1995", {"tunnel", "direct"}), ("1996", {"tunnel"})):
                show = ("ip", f"-{version}", "route", "show", "table", table)
                routes = mesh.attempt(node.place, *show).stdout.splitlines()
                assert len(routes) == (2 if wanted in ways else 0)


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

"""A global Service is one Service, whichever cluster its pods and its clients are in."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from .conftest import NewMesh
from .mesh import ECHO_PORTS, Mesh, eventually, service

CLIENTS = ("cluster1/node1/pod1", "cluster2/node2/pod2")
ALL_PODS: dict[str, Any] = {"cluster1": 4, "cluster2": 4}


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("service")
    made.apply("cluster1", service("echo"))
    # Another address than in cluster1: addresses belong to a cluster, names to the mesh.
    made.apply("cluster2", service("other"), service("echo"))
    made.wait_for_backends("echo", **ALL_PODS)
    return made


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mode", [("tcp",), ("udp",), ("udp", "--connected")])
def test_pods_of_both_clusters_answer_100_calls(
    mesh: Mesh, client: str, family: int, mode: tuple[str, ...]
) -> None:
    address = mesh.cluster_ips(client.partition("/")[0], "echo")[family == 6]

    report = mesh.call(client, mode[0], address, 80, "--count=100", *mode[1:])

    assert (report["answered"], report["failed"]) == (100, 0), report
    clusters = {pod.partition("/")[0] for pod in report["pods"]}
    assert clusters == {"cluster1", "cluster2"}
    assert len(report["pods"]) >= 6  # of 8: each is left out with a chance of 1 in 600,000


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mode", ["tcp", "udp"])
def test_the_clients_address_arrives_unchanged(mesh: Mesh, family: int, mode: str) -> None:
    client = "cluster1/node2/pod2"
    target = mesh.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    own = next(pod.addresses for node in mesh.nodes for pod in node.pods if pod.place == client)

    through = mesh.call(
        client, mode, mesh.cluster_ips("cluster1", "echo")[family == 6], 80, "--count=40"
    )
    straight = mesh.call(client, mode, target.addresses[family == 6], 8080)

    for report in (through, straight):
        assert {ip_address(seen) for seen in report["clients"]} == {own[family == 6]}, report
    assert straight["pods"] == {target.place: 1}


def test_both_clusters_see_the_same_backends_under_their_own_addresses(mesh: Mesh) -> None:
    ours, theirs = mesh.cluster_ips("cluster1", "echo"), mesh.cluster_ips("cluster2", "echo")

    assert ours != theirs
    assert [row["address"] for row in mesh.frontends("cluster1/node1", "echo")] == sorted(
        _frontend_addresses(ours)
    )
    assert [row["address"] for row in mesh.frontends("cluster2/node1", "echo")] == sorted(
        _frontend_addresses(theirs)
    )
    backends = [
        mesh.frontends(n, "echo")[0]["backends"] for n in ("cluster1/node1", "cluster2/node1")
    ]
    assert backends[0] == backends[1]


def test_affinity_prefers_and_falls_back(mesh: Mesh) -> None:
    client, (address, _) = "cluster1/node1/pod2", mesh.cluster_ips("cluster1", "echo")

    def flip(affinity: str) -> None:
        mesh.apply("cluster1", service("echo", affinity=affinity))

    try:
        flip("local")
        mesh.wait_for_backends("echo", "cluster1/node1", cluster1=4)
        assert mesh.backends("cluster1/node1", "echo", "standby") == {"cluster2": 4}
        assert mesh.answers(client, "tcp", address, 80) == {"cluster1"}

        flip("remote")
        mesh.wait_for_backends("echo", "cluster1/node1", cluster2=4)
        assert mesh.answers(client, "tcp", address, 80) == {"cluster2"}
        # It is a wish of cluster1, for its own clients.
        assert mesh.backends("cluster2/node1", "echo") == ALL_PODS

        mesh.stop("cluster2/pods")
        mesh.pods_changed("cluster2")
        mesh.wait_for_backends("echo", "cluster1/node1", cluster1=4)
        assert mesh.answers(client, "tcp", address, 80) == {"cluster1"}

        flip("local")
        mesh.start("cluster2/pods")
        mesh.stop("cluster1/pods")
        mesh.pods_changed("cluster1", "cluster2")
        mesh.wait_for_backends("echo", "cluster1/node1", cluster2=4)
        assert mesh.answers(client, "tcp", address, 80) == {"cluster2"}
    finally:
        mesh.start("cluster1/pods", "cluster2/pods")
        mesh.pods_changed("cluster1", "cluster2")
        flip("none")
    mesh.wait_for_backends("echo", **ALL_PODS)
    assert mesh.answers(client, "tcp", address, 80) == {"cluster1", "cluster2"}


def test_a_service_that_is_not_global_is_left_alone(mesh: Mesh) -> None:
    """Its address is also nobody's: a connection there must not come out at some backend."""
    address = "10.101.77.7"
    private = service("private", is_global=False, clusterIPs=[address], clusterIP=address)

    with mesh.applied(cluster1=private, cluster2=service("private")):
        mesh.wait_for_backends("private", "cluster2/node1", cluster2=4)

        assert mesh.frontends("cluster1/node1", "private") == []
        assert address not in {str(a.ip) for a in mesh.held("cluster1/node1")}
        said = mesh.table("cluster2/node1", "services")
        assert [r["cluster"] for r in said if r["service"] == "default/private"] == ["cluster2"]
        report = mesh.call("cluster1/node1/pod1", "tcp", address, 80, "--timeout=0.3")
        assert report["failed"] == 1, report


def test_a_service_that_is_not_shared_is_withdrawn_from_the_peer_only(mesh: Mesh) -> None:
    with mesh.applied(cluster1=service("web"), cluster2=service("web")):
        mesh.wait_for_backends("web", **ALL_PODS)

        mesh.apply("cluster1", service("web", shared="false"))

        mesh.wait_for_backends("web", "cluster2/node1", cluster2=4)
        assert mesh.backends("cluster1/node1", "web") == ALL_PODS

        mesh.apply("cluster1", service("web"))
        mesh.wait_for_backends("web", **ALL_PODS)


def test_ports_meet_by_name_whatever_their_numbers(mesh: Mesh) -> None:
    """In cluster1 port 80 is the HTTP server's; in cluster2 the name stands on 8080 directly."""
    ours = service(
        "named",
        ports=[
            {"name": "web", "port": 80, "targetPort": "http"},
            {"name": "only-here", "port": 81, "targetPort": 8081},
        ],
    )
    theirs = service(
        "named",
        ports=[
            {"name": "lines", "port": 9000, "targetPort": 8081},
            {"name": "web", "port": 8000, "targetPort": 8080},
        ],
    )
    with mesh.applied(cluster1=ours, cluster2=theirs):
        mesh.wait_for_backends("named", **ALL_PODS)

        here, there = (
            mesh.cluster_ips("cluster1", "named")[0],
            mesh.cluster_ips("cluster2", "named")[0],
        )
        assert mesh.answers("cluster1/node1/pod1", "tcp", here, 80) == {"cluster1", "cluster2"}
        assert mesh.answers("cluster2/node1/pod1", "tcp", there, 8000) == {"cluster1", "cluster2"}
        rows = {r["address"]: r for r in mesh.frontends("cluster1/node1", "named")}
        assert {b["cluster"] for b in rows[f"{here}:81/TCP"]["backends"]} == {"cluster1"}


def test_target_ports_may_differ_from_cluster_to_cluster(mesh: Mesh) -> None:
    """The same port name is a server on 8080 in one cluster, and one on 8081 in the other."""
    ours = service("target", ports=[{"name": "x", "port": 9, "targetPort": 8080}])
    theirs = service("target", ports=[{"name": "x", "port": 9, "targetPort": 8081}])
    with mesh.applied(cluster1=ours, cluster2=theirs):
        mesh.wait_for_backends("target", **ALL_PODS)

        (row, *_) = mesh.frontends("cluster2/node1", "target")
        ports = {(b["cluster"], b["address"].rpartition(":")[2]) for b in row["backends"]}
        assert ports == {("cluster1", "8080/TCP"), ("cluster2", "8081/TCP")}


def test_a_service_can_have_remote_backends_only(mesh: Mesh) -> None:
    with mesh.applied(cluster1=service("away", selector={}), cluster2=service("away")):
        mesh.wait_for_backends("away", cluster2=4)

        for address in mesh.cluster_ips("cluster1", "away"):
            assert mesh.answers("cluster1/node2/pod1", "tcp", address, 80) == {"cluster2"}


def test_a_service_without_any_backend_refuses_at_once(mesh: Mesh) -> None:
    with mesh.applied(cluster1=service("empty", selector={})):
        eventually("the frontends are there", lambda: mesh.frontends("cluster1/node1", "empty"))
        mesh.wait_for_kernel("cluster1/node1")

        address, _ = mesh.cluster_ips("cluster1", "empty")
        report = mesh.call("cluster1/node1/pod1", "tcp", address, 80, "--timeout=5")

        assert report["failed"] == 1
        assert report["longest_gap"] < 2, report


HEADLESS: dict[str, Any] = {"clusterIP": "None", "clusterIPs": ["None"]}
EXTERNAL: dict[str, Any] = {"type": "ExternalName", "externalName": "example.com"}


@pytest.mark.parametrize(
    "odd",
    [
        service("odd", **HEADLESS),
        service("odd", selector={}, **HEADLESS),
        service("odd", selector={}),
        service("odd", **EXTERNAL),
        service("odd", ports=[{"port": 80, "targetPort": "no-such-port", "name": "x"}]),
        service("odd", clusterIP="10.101.9.9", clusterIPs=["10.101.9.9"]),
    ],
    ids=[
        "headless",
        "headless without selector",
        "without selector",
        "ExternalName",
        "unknown target port",
        "one IP family",
    ],
)
def test_odd_services_disturb_nobody(mesh: Mesh, odd: dict[str, Any]) -> None:
    """Whatever it is: a service applied after it still arrives, and every process is well."""
    mesh.apply("cluster1", odd)
    mesh.apply("cluster2", odd)
    try:
        with mesh.applied(cluster1=service("after"), cluster2=service("after")):
            mesh.wait_for_backends("after", **ALL_PODS)
            assert mesh.answers(
                "cluster1/node1/pod1", "tcp", mesh.cluster_ips("cluster1", "after")[0], 80
            ) == {"cluster1", "cluster2"}
    finally:
        mesh.delete("cluster1", odd)
        mesh.delete("cluster2", odd)
    mesh.wait_until_well()


def test_a_protocol_that_is_not_balanced_is_named_and_the_rest_works(mesh: Mesh) -> None:
    ports = [*ECHO_PORTS, {"name": "x", "port": 99, "protocol": "SCTP"}]
    with mesh.applied(cluster1=service("sctp", ports=ports)):
        said = eventually(
            "a failure", lambda: mesh.reply("cluster1/node1", "frontends")["failures"]
        )
        assert "SCTP is not balanced at the socket" in said[0]["error"]
        assert "clustermesh show frontends" in mesh.troubles("cluster1/node1")
        address, _ = mesh.cluster_ips("cluster1", "sctp")
        assert mesh.answers("cluster1/node1/pod1", "udp", address, 80) == {"cluster1"}
    mesh.wait_until_well()


def test_the_kernel_holds_what_is_wanted(mesh: Mesh) -> None:
    """`show maps` against `show frontends` and `show ipcache`, on every node."""
    for node in mesh.nodes:
        wanted, held = mesh.both(node.place)
        assert held == wanted
        assert len(wanted) >= 2 * len(ECHO_PORTS)
        ipcache = mesh.table(node.place, "ipcache")
        assert {r["prefix"] for r in ipcache} == {
            r["prefix"] for r in mesh.maps(node.place)["ipcache"]
        }


def _frontend_addresses(ips: Sequence[str]) -> list[str]:
    hosts = [f"[{ip}]" if ":" in ip else ip for ip in ips]
    return [
        f"{host}:{port['port']}/{port.get('protocol', 'TCP')}"
        for host in hosts
        for port in ECHO_PORTS
    ]

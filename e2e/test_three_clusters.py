"""A mesh is more than a pair: who leaves takes along what is theirs, and nothing else."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import pytest

from .conftest import NewMesh
from .mesh import Mesh, cli, eventually, service
from .watches import Calls, KernelWatch

CLUSTERS = ("cluster1", "cluster2", "cluster3")


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("three", "--clusters=3", "--nodes=1")
    for cluster in CLUSTERS:
        made.apply(cluster, service("echo"))
    made.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)
    return made


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mode", ["tcp", "udp"])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_all_three_answer_each_of_them(mesh: Mesh, cluster: str, mode: str, family: int) -> None:
    address = mesh.cluster_ips(cluster, "echo")[family == 6]
    assert mesh.answers(f"{cluster}/node1/pod1", mode, address, 80) == set(CLUSTERS)


def test_disconnecting_drains_that_cluster_only(mesh: Mesh) -> None:
    address, _ = mesh.cluster_ips("cluster1", "echo")
    with Calls(mesh, "cluster1/node1/pod1", "tcp", address, 80, every=0.01) as calls:
        cli("sandbox", "disconnect", "cluster1", "cluster3", "--name", mesh.name)
        mesh.wait_for_backends("echo", "cluster1/node1", cluster1=2, cluster2=2)
        mesh.wait_for_backends("echo", "cluster3/node1", cluster2=2, cluster3=2)
        assert mesh.backends("cluster2/node1", "echo") == dict.fromkeys(CLUSTERS, 2)
        assert mesh.answers("cluster1/node1/pod2", "tcp", address, 80) == {"cluster1", "cluster2"}

        for table in ("routes", "nodes", "endpoints"):
            eventually(f"{table} without cluster3", partial(_lacks, mesh, table, "cluster3"))
        routes = partial(mesh.run, "cluster1/node1", "ip", "route", "show", "table", "all")
        eventually("the kernel without routes to cluster3", lambda: "10.3.1.0/24" not in routes())
        assert "10.2.1.0/24" in routes()
    # What was taken away answered until it was: it went in order.
    assert calls.report["errors"] == {}

    cli("sandbox", "connect", "cluster1", "cluster3", "--name", mesh.name)
    mesh.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)


def _lacks(mesh: Mesh, table: str, cluster: str) -> bool:
    return all(row["cluster"] != cluster for row in mesh.table("cluster1/node1", table))


def test_a_service_is_withdrawn_from_both_others(mesh: Mesh) -> None:
    for first, second in combinations(CLUSTERS, 2):
        left = next(c for c in CLUSTERS if c not in {first, second})
        mesh.delete(first, service("echo"))
        mesh.delete(second, service("echo"))
        mesh.wait_for_backends("echo", f"{left}/node1", **{left: 2})
        mesh.apply(first, service("echo"))
        mesh.apply(second, service("echo"))
        mesh.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)


def test_a_cluster_that_is_stopped_as_a_whole_comes_back(mesh: Mesh) -> None:
    """While it is away its backends stay: nobody has said that they are gone."""
    with KernelWatch(mesh) as watch:
        mesh.stop("cluster3", kill=True)
        trouble = mesh.troubles("cluster3/node1")
        assert "does not run" in trouble
        mesh.start("cluster3")
        mesh.wait_for_backends("echo", cluster1=2, cluster2=2, cluster3=2)
    assert watch.withdrawn() == {}

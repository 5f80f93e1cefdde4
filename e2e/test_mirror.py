"""Agents that read one etcd, their own cluster's: it has copies of the others."""

from __future__ import annotations

import pytest

from .conftest import NewMesh
from .mesh import Mesh, eventually, service
from .watches import KernelWatch

CLIENT = "cluster1/node1/pod1"


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("mirror", "--mirror", "--nodes=1")
    made.apply("cluster1", service("echo"))
    made.apply("cluster2", service("echo"))
    made.wait_for_backends("echo", cluster1=2, cluster2=2)
    return made


def test_both_clusters_answer_and_no_agent_talks_to_the_other_etcd(mesh: Mesh) -> None:
    for address in mesh.cluster_ips("cluster1", "echo"):
        assert mesh.answers(CLIENT, "tcp", address, 80) == {"cluster1", "cluster2"}
    for cluster in ("cluster1", "cluster2"):
        own = mesh.world.sandbox.cluster(cluster).control.addresses.v4
        connections = mesh.run(f"{cluster}/node1", "ss", "-Htn", "dport = :2379").splitlines()
        peers = {line.split()[4] for line in connections}
        assert peers <= {f"{own}:2379", f"[::ffff:{own}]:2379"}
        assert peers


def test_what_changes_in_the_other_cluster_comes_by_way_of_the_copy(mesh: Mesh) -> None:
    mesh.stop("cluster2/node1/pod1")
    mesh.pods_changed("cluster2")
    mesh.wait_for_backends("echo", cluster1=2, cluster2=1)
    mesh.start("cluster2/node1/pod1")
    mesh.pods_changed("cluster2")
    mesh.wait_for_backends("echo", cluster1=2, cluster2=2)


def test_a_cluster_that_is_away_keeps_what_it_said_and_the_apiserver_says_why(mesh: Mesh) -> None:
    with KernelWatch(mesh) as watch:
        mesh.stop("cluster2/etcd", kill=True)
        eventually(
            "the cause",
            lambda: "connection refused" in mesh.troubles("cluster1/apiserver"),
        )
        # Not even by agents and an apiserver that start while it is away.
        mesh.stop("cluster1/node1", "cluster1/apiserver", kill=True)
        for part in mesh.parts("cluster1/apiserver", "cluster1/node1"):
            part.start()
        eventually("the agent is ready", lambda: mesh.troubles("cluster1/node1") == "")
        mesh.wait_for_backends("echo", cluster1=2, cluster2=2)
        mesh.start("cluster2/etcd")
        mesh.wait_until_well()
    assert watch.withdrawn() == {}


def test_our_etcd_that_loses_its_data_takes_nothing_away(mesh: Mesh) -> None:
    etcd = mesh.world.sandbox.home(mesh.world.sandbox.cluster("cluster1").control) / "etcd"
    with KernelWatch(mesh) as watch:
        mesh.stop("cluster1/etcd", kill=True)
        etcd.rename(etcd.with_name("lost"))
        mesh.start("cluster1/etcd")
        mesh.wait_until_well()
        mesh.wait_for_backends("echo", cluster1=2, cluster2=2)
    assert watch.withdrawn() == {}


def test_a_cluster_that_is_disconnected_is_gone_from_etcd_and_kernels(mesh: Mesh) -> None:
    one, two = (mesh.world.sandbox.cluster(name) for name in ("cluster1", "cluster2"))
    mesh.world.disconnect(one, two)
    mesh.wait_for_backends("echo", "cluster1/node1", cluster1=2)

    everything = ("get", "--prefix", "cilium/", "--keys-only")
    eventually("the copy is gone", lambda: b"cluster2" not in mesh.etcdctl("cluster1", *everything))
    mesh.world.connect(one, two)
    mesh.wait_for_backends("echo", "cluster1/node1", cluster1=2, cluster2=2)

"""A Service survives the loss of all of its backends in a cluster, whichever way they go."""

from __future__ import annotations

import time

import pytest

from .conftest import NewMesh
from .mesh import Mesh, service
from .watches import Calls

MOST = 1.0  # seconds after which no call may fail any more


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("losing")
    made.apply("cluster1", service("echo"))
    made.apply("cluster2", service("echo"))
    made.wait_for_backends("echo", cluster1=4, cluster2=4)
    return made


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("lost", ["cluster1", "cluster2"])
def test_no_call_fails_one_second_after_a_cluster_lost_its_backends(
    mesh: Mesh, lost: str, kill: bool
) -> None:
    left = "cluster2" if lost == "cluster1" else "cluster1"
    address, _ = mesh.cluster_ips("cluster1", "echo")
    # The pod that calls is no server any more then, but it is still there.
    client = "cluster1/node1/pod1"
    assert mesh.answers(client, "tcp", address, 80) == {"cluster1", "cluster2"}
    with Calls(mesh, client, "tcp", address, 80, every=0.01) as calls:
        gone_at = time.monotonic()
        mesh.stop(f"{lost}/pods", kill=kill)
        mesh.pods_changed(lost)
        mesh.call(client, "tcp", address, 80, "--count=200", "--every=0.01")  # two seconds
    last = calls.report["last_failure"]
    assert last is None or last < gone_at + MOST, (calls.report, last - gone_at)
    assert mesh.answers(client, "tcp", address, 80) == {left}

    mesh.start(f"{lost}/pods")
    mesh.pods_changed(lost)
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)


def test_a_pod_that_ends_is_gone_from_every_node_and_the_others_stay(mesh: Mesh) -> None:
    mesh.stop("cluster2/node1/pod1")
    mesh.pods_changed("cluster2")
    mesh.wait_for_backends("echo", cluster1=4, cluster2=3)

    mesh.start("cluster2/node1/pod1")
    mesh.pods_changed("cluster2")
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)

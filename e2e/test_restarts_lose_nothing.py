"""
Losing anything loses nothing.

An agent, an apiserver, an etcd, an etcd with its data, a whole control plane: each may die and come
back under traffic. What the kernels hold is looked at a hundred times a second meanwhile, and may
not change at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .conftest import NewMesh
from .mesh import Mesh, eventually, service
from .watches import Calls, KernelWatch, Ping

CLIENT = "cluster1/node1/pod1"


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("restarts")
    made.apply("cluster1", service("echo", affinity="remote"), service("both"))
    made.apply("cluster2", service("echo"), service("both"))
    made.wait_for_backends("both", cluster1=4, cluster2=4)
    made.wait_for_backends("echo", "cluster1/node1", cluster2=4)
    return made


@contextmanager
def nothing_is_lost(mesh: Mesh) -> Iterator[None]:
    """A ping, a connection and calls between the clusters, and a look at every kernel."""
    server = mesh.world.sandbox.cluster("cluster2").nodes[0].pods[0]
    v4, v6 = mesh.cluster_ips("cluster1", "echo")
    with (
        KernelWatch(mesh) as watch,
        Ping(mesh, CLIENT, server.addresses.v4) as ping,
        Ping(mesh, CLIENT, server.addresses.v6) as ping6,
        Calls(mesh, CLIENT, "stream", v4, 81, every=0.005) as stream,
        Calls(mesh, CLIENT, "stream", v6, 81, every=0.005) as stream6,
        Calls(mesh, CLIENT, "tcp", v4, 80, every=0.02) as calls,
    ):
        yield
    assert ping.lost() == []
    assert ping6.lost() == []
    for report in (stream.report, stream6.report):
        assert report["broken"] is None, report
        assert report["failed"] == 0, report
        assert report["calls"] > 100, report
    assert calls.report["failed"] == 0, calls.report
    assert watch.withdrawn() == {}


def test_an_agent_that_is_killed_ten_times(mesh: Mesh) -> None:
    """Every other time while it is starting: at the first things that it has to say."""
    agents = mesh.parts("cluster1/node1", "cluster2/node1")
    with nothing_is_lost(mesh):
        for time in range(10):
            for agent in agents:
                mesh.stop(agent.name, kill=True)
                said = agent.log.stat().st_size
                agent.start()
                if time % 2:
                    lines = time // 2 + 1
                    eventually(
                        f"{lines} lines of {agent.name}",
                        lambda: agent.log.read_bytes()[said:].count(b"\n") >= lines,  # noqa: B023
                    )
            if time % 2 == 0:
                mesh.wait_until_well()
        mesh.wait_until_well()


def test_agents_that_are_stopped_and_stay_away(mesh: Mesh) -> None:
    """The kernel goes on by itself; the agent adopts what it finds, and rewrites nothing."""
    before = {node.place: _generations(mesh, node.place) for node in mesh.nodes}
    with nothing_is_lost(mesh):
        names = [node.place for node in mesh.nodes]
        mesh.stop(*names)
        mesh.answers(CLIENT, "udp", mesh.cluster_ips("cluster1", "both")[0], 80)
        mesh.start(*names)
    assert {node.place: _generations(mesh, node.place) for node in mesh.nodes} == before


@pytest.mark.parametrize("part", ["etcd", "apiserver"])
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
def test_a_control_plane_that_restarts(mesh: Mesh, part: str, kill: bool) -> None:
    with nothing_is_lost(mesh):
        mesh.stop(f"cluster2/{part}", kill=kill)
        mesh.start(f"cluster2/{part}")
        _see_news(mesh)


@pytest.mark.parametrize("alone", [True, False], ids=["etcd alone", "with its apiserver"])
def test_an_etcd_that_comes_back_empty(mesh: Mesh, alone: bool) -> None:
    parts = ["cluster2/etcd"] if alone else ["cluster2/etcd", "cluster2/apiserver"]
    control = mesh.world.sandbox.cluster("cluster2").control
    with nothing_is_lost(mesh):
        mesh.stop(*parts, kill=True)
        shutil.rmtree(mesh.world.sandbox.home(control) / "etcd")
        mesh.start(*parts)
        _see_news(mesh)


def test_an_agent_keeps_the_backends_of_a_peer_that_is_away(mesh: Mesh) -> None:
    """It has nobody to ask then, but what it wrote down the last time."""
    with nothing_is_lost(mesh):
        mesh.stop("cluster2/etcd", kill=True)
        for agent in mesh.parts("cluster1/node1"):
            mesh.stop(agent.name, kill=True)
            agent.start()
        eventually(
            "status names what is missing",
            lambda: (
                "cluster2 is failed" in mesh.troubles("cluster1/node1")
                and "172.30.2.254" in mesh.troubles("cluster1/node1")
            ),
        )
        mesh.wait_for_backends("both", "cluster1/node1", cluster1=4, cluster2=4)

        # It must also go on with what it hears from its own cluster.
        mesh.apply("cluster1", service("new"))
        mesh.wait_for_backends("new", "cluster1/node1", cluster1=4)
        mesh.delete("cluster1", service("new"))
        eventually("it is gone", lambda: not mesh.frontends("cluster1/node1", "new"))
        mesh.start("cluster2/etcd")
        _see_news(mesh)


def test_both_etcds_and_all_agents_at_once(mesh: Mesh) -> None:
    everything = [
        f"{cluster.name}/{part}"
        for cluster in mesh.world.sandbox.members
        for part in ("etcd", "apiserver", "node1", "node2")
    ]
    with nothing_is_lost(mesh):
        mesh.stop(*everything, kill=True)
        mesh.start(*everything)
        _see_news(mesh)


def _see_news(mesh: Mesh) -> None:
    """See that changes still arrive: a reader that hangs would lose nothing either."""
    mesh.apply("cluster2", service("news"))
    mesh.apply("cluster1", service("news"))
    mesh.wait_for_backends("news", cluster1=4, cluster2=4)
    mesh.delete("cluster2", service("news"))
    mesh.wait_for_backends("news", "cluster1/node1", cluster1=4)
    mesh.delete("cluster1", service("news"))
    for node in mesh.nodes:
        eventually("it is gone", lambda: not mesh.frontends(node.place, "news"))  # noqa: B023


def _generations(mesh: Mesh, node: str) -> dict[str, int]:
    """How often each frontend has been written: it counts up with every change."""
    maps = mesh.maps(node)
    return {row["address"]: row["generation"] for row in maps["frontends"]}

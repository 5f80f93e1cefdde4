"""Sandboxes with a real API server in each cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from clustermesh.sandbox import remains
from e2e.conftest import NewMesh, new_mesh
from e2e.mesh import Mesh, cli, eventually, service
from e2e.tutorial import follow

from .chart import CHART

__all__ = ["new_mesh"]

pytestmark = [
    pytest.mark.xdist_group("sandbox"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

_CLIENT: Final = "cluster1/node1/pod1"


@pytest.fixture(scope="module")
def mesh(kube_programs: Path, new_mesh: NewMesh) -> Mesh:
    return new_mesh("kube", "--api=kube")


@pytest.fixture
def echo(mesh: Mesh) -> Iterator[dict[str, Any]]:
    """A Service that all pods of both clusters answer, with an address of each family."""
    made = service("echo", ipFamilyPolicy="RequireDualStack")
    mesh.apply("cluster1", made)
    mesh.apply("cluster2", made)
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)
    yield made
    mesh.delete("cluster1", made)
    mesh.delete("cluster2", made)


def test_both_clusters_answer_a_service_of_addresses_that_kubernetes_gave(
    mesh: Mesh, echo: dict[str, Any]
) -> None:
    for address in cluster_ips(mesh, "cluster1"):
        for mode in ("tcp", "udp"):
            assert mesh.answers(_CLIENT, mode, address, 80) == {"cluster1", "cluster2"}


def test_pods_that_stop_are_withdrawn_and_come_back(mesh: Mesh, echo: dict[str, Any]) -> None:
    address, _ = cluster_ips(mesh, "cluster1")
    cli("sandbox", "stop", "cluster1/pods", "cluster2/node1/pod1", "--name", mesh.name)
    mesh.wait_for_backends("echo", cluster2=3)
    assert mesh.answers(_CLIENT, "tcp", address, 80) == {"cluster2"}
    cli("sandbox", "start", "cluster1/pods", "cluster2/node1/pod1", "--name", mesh.name)
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)


def test_a_service_that_is_deleted_is_withdrawn_everywhere(
    mesh: Mesh, echo: dict[str, Any]
) -> None:
    mesh.delete("cluster2", echo)
    mesh.wait_for_backends("echo", "cluster1/node1", cluster1=4)
    mesh.apply("cluster2", echo)
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)


def test_an_api_server_that_was_away_hears_which_pods_stopped(
    mesh: Mesh, echo: dict[str, Any]
) -> None:
    cli("sandbox", "stop", "--kill", "cluster1/kube-apiserver", "--name", mesh.name)
    cli("sandbox", "stop", "cluster1/node2/pod1", "--name", mesh.name)
    assert "refused" in mesh.troubles("cluster1/apiserver")
    assert mesh.backends("cluster2/node1", "echo") == {"cluster1": 4, "cluster2": 4}
    cli("sandbox", "start", "cluster1/kube-apiserver", "--name", mesh.name)
    mesh.wait_for_backends("echo", cluster1=3, cluster2=4)
    cli("sandbox", "start", "cluster1/node2/pod1", "--name", mesh.name)
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)


def test_clusters_are_parted_and_joined_by_the_commands_for_kubernetes(
    mesh: Mesh, echo: dict[str, Any]
) -> None:
    contexts = ("--context=cluster1", "--destination-context=cluster2")
    in_control = ("sandbox", "exec", "--name", mesh.name, "cluster1/control", "--", "clustermesh")
    assert "cluster2: disconnect from cluster1" in cli(*in_control, "disconnect", *contexts)
    mesh.wait_for_backends("echo", "cluster1/node1", cluster1=4)
    mesh.wait_for_backends("echo", "cluster2/node2", cluster2=4)
    assert "connect to cluster1 at https://172.30.1.254:2379" in cli(
        *in_control, "connect", *contexts
    )
    mesh.wait_for_backends("echo", cluster1=4, cluster2=4)


def test_where_nothing_is_encrypted_no_key_is_changed(mesh: Mesh) -> None:
    in_control = ("sandbox", "exec", "--name", mesh.name, "cluster1/control", "--")
    rotate = ("clustermesh", "encryption", "rotate", "--context=cluster1")
    said = cli(*in_control, *rotate, code=1)
    assert said.startswith("error: cluster1: node1 does not encrypt\n")


def test_every_agent_writes_the_mesh_node_of_its_own_node(mesh: Mesh) -> None:
    """By the token of its pod: the chart's policy lets it write no other."""
    in_control = ("sandbox", "exec", "--name", mesh.name, "cluster1/control", "--")
    get = ("kubectl", "get", "meshnodes", "--output", "name")
    wanted = {f"meshnode.clustermesh.io/{node}" for node in ("node1", "node2")}
    eventually("MeshNodes", lambda: set(cli(*in_control, *get).split()) == wanted)


def test_the_daemons_are_what_the_chart_made(mesh: Mesh) -> None:
    """A value of the chart is what an agent has: helm changes it, and the next agent knows."""
    in_control = ("sandbox", "exec", "--name", mesh.name, "cluster1/control", "--")
    values = ("--namespace=clustermesh", "--reuse-values", "--set=logFormat=json")
    cli(*in_control, "helm", "upgrade", "clustermesh", str(CHART), *values)
    settings = mesh.world.sandbox.home(mesh.node("cluster1/node1")) / "volumes/etc/clustermesh"
    file = settings / "config/agent.yaml"
    eventually("the file of settings", lambda: "log-format: json" in file.read_text())
    (agent,) = mesh.parts("cluster1/node1")
    agent.stop()
    assert "\n{" not in agent.log.read_text()
    mesh.start("cluster1/node1")
    eventually("a message as JSON", lambda: "\n{" in agent.log.read_text())


def test_what_kubernetes_refuses_is_said_as_it_says_it(mesh: Mesh, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(json.dumps(service("bad", ports=[{"name": "http", "port": 70000}])))
    said = cli("sandbox", "apply", "cluster1", str(bad), "--name", mesh.name, code=1)
    assert "must be between 1 and 65535" in said


def test_without_its_programs_nothing_is_made(
    sandbox_name: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sandbox_name("bare")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    said = cli("sandbox", "up", "--api=kube", "--name", name, code=1)
    assert said.startswith("error: there is no kube-apiserver to run here: ")
    assert not remains.remains(name)


@pytest.mark.timeout(300)
def test_the_tutorial_works_as_it_is_written(
    kube_programs: Path, sandbox_name: Callable[[str], str], tmp_path: Path
) -> None:
    follow("tutorial-kubernetes.md", sandbox_name("tutorial-kube"), tmp_path)


def cluster_ips(mesh: Mesh, cluster: str) -> list[str]:
    """The addresses of the Service `echo` in a cluster."""
    ask = ("kubectl", "get", "service", "echo", "--output", "json")
    said = cli("sandbox", "exec", "--name", mesh.name, f"{cluster}/control", "--", *ask)
    ips: list[str] = json.loads(said)["spec"]["clusterIPs"]
    return ips

"""`clustermesh install`, `connect`, … against two real API servers, with the real helm."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from .cluster import KubeCluster

pytestmark = pytest.mark.xdist_group("contexts")

_NAMESPACE: Final = "kube-system"


class Said(NamedTuple):
    """What a command printed."""

    code: int
    out: str
    err: str


class Contexts:
    """Clusters, and the kubeconfig of one who may do everything in all of them."""

    def __init__(self, directory: Path, programs: Path, clusters: list[KubeCluster]) -> None:
        self.clusters: Final = {cluster.name: cluster for cluster in clusters}
        self.directory: Final = directory
        self._kubeconfig = directory / "kubeconfig"
        self._helm = programs / "helm4"
        configs = [yaml.safe_load(cluster.kubeconfig.read_text()) for cluster in clusters]
        kinds = ("clusters", "users", "contexts")
        merged = {kind: [entry for one in configs for entry in one[kind]] for kind in kinds}
        self._kubeconfig.write_text(yaml.safe_dump(merged))

    def run(self, *words: str, helm: str = "") -> Said:
        """`clustermesh WORDS…`."""
        ran = subprocess.run(
            [sys.executable, "-c", "from clustermesh.cli.main import main; main()", *words],
            env={
                **os.environ,
                "KUBECONFIG": str(self._kubeconfig),
                "CLUSTERMESH_HELM": helm or str(self._helm),
                "HOME": str(self._kubeconfig.parent),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(ran.returncode, ran.stdout, ran.stderr)

    def install(self, name: str, number: int, *flags: str) -> Said:
        """Install into the context of that name."""
        return self.run(
            "install",
            f"--context={name}",
            f"--cluster-name={name}",
            f"--cluster-id={number}",
            *flags,
        )

    def connect(self, *flags: str, helm: str = "") -> Said:
        """Connect east with west."""
        both = ("--context=east", "--destination-context=west")
        return self.run("connect", *both, *flags, helm=helm)

    def disconnect(self) -> Said:
        """Disconnect east from west."""
        return self.run("disconnect", "--context=east", "--destination-context=west")

    def apiserver(self, name: str) -> Any:
        """The template of the apiserver's pods: they are replaced when it changes."""
        path = f"/apis/apps/v1/namespaces/{_NAMESPACE}/deployments/clustermesh-apiserver"
        return self.clusters[name].call("GET", path)["spec"]["template"]

    def get(self, name: str, path: str) -> Any:
        """An object in the namespace of the installation; None without it."""
        whole = f"/api/v1/namespaces/{_NAMESPACE}/{path}"
        cluster = self.clusters[name]
        return cluster.call("GET", whole) if cluster.exists(whole) else None

    def version(self, name: str, path: str) -> str | None:
        """What changes whenever the object does."""
        found = self.get(name, path)
        return found and str(found["metadata"]["resourceVersion"])


_NODES: Final = {"east": ("10.1.0.0/24", "192.0.2.1"), "west": ("10.2.0.0/24", "192.0.2.2")}


@pytest.fixture(scope="module")
def clusters(
    kube_programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[KubeCluster]]:
    directory = tmp_path_factory.mktemp("contexts")
    east = KubeCluster(directory / "east", "east", programs=kube_programs)
    west = KubeCluster(directory / "west", "west", programs=kube_programs)
    with east, west:
        yield [east, west]


@pytest.fixture
def contexts(
    clusters: list[KubeCluster], kube_programs: Path, tmp_path: Path
) -> Iterator[Contexts]:
    """Two clusters with a node each, and nothing installed."""
    for cluster in clusters:
        put_node(cluster, "node1", *_NODES[cluster.name])
    yield Contexts(tmp_path, kube_programs, clusters)
    for cluster in clusters:
        if cluster.helm("list", "--namespace", _NAMESPACE, "--all", "--short", version=3):
            cluster.helm("uninstall", "clustermesh", "--namespace", _NAMESPACE)
        for name in ("secrets/clustermesh-clusters", "configmaps/clustermesh-ca-bundle"):
            path = f"/api/v1/namespaces/{_NAMESPACE}/{name}"
            if cluster.exists(path):
                cluster.call("DELETE", path)


def put_node(cluster: KubeCluster, name: str, cidr: str, address: str) -> None:
    path = f"/api/v1/nodes/{name}"
    if cluster.exists(path):
        cluster.call("DELETE", path)
    spec = {"podCIDR": cidr, "podCIDRs": [cidr]}
    cluster.call("POST", "/api/v1/nodes", {"metadata": {"name": name}, "spec": spec})
    status = {"addresses": [{"type": "InternalIP", "address": address}]}
    cluster.call("PATCH", f"{path}/status", {"status": status})


def test_installing_says_what_comes_next_and_keeps_name_and_id(contexts: Contexts) -> None:
    said = contexts.install("east", 1)
    assert (said.code, said.err) == (0, "")
    assert "clustermesh connect --context" in said.out
    assert contexts.install("east", 1).code == 0
    said = contexts.install("east", 2)
    assert said.code == 1
    assert "this cluster is east with id 1, and stays so" in said.err


def test_two_clusters_of_one_ca_are_connected_and_disconnected(contexts: Contexts) -> None:
    assert contexts.install("east", 1).code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0

    said = contexts.connect()
    assert (said.code, said.err) == (0, "")
    assert "east: connect to west at https://192.0.2.2:32379\n" in said.out
    assert "west: connect to east at https://192.0.2.1:32379\n" in said.out
    assert "trust" not in said.out

    clusters = "secrets/clustermesh-clusters"
    file = yaml.safe_load(base64.b64decode(contexts.get("east", clusters)["data"]["west"]))
    assert file == {
        "endpoints": ["https://192.0.2.2:32379"],
        "server-name": "west.mesh.cilium.io",
        "trusted-ca-file": "/etc/clustermesh/remote/ca.crt",
        "cert-file": "/etc/clustermesh/remote/tls.crt",
        "key-file": "/etc/clustermesh/remote/tls.key",
    }
    before = [contexts.version(name, clusters) for name in ("east", "west")]
    said = contexts.connect()
    assert "nothing is to be changed" in said.out
    assert [contexts.version(name, clusters) for name in ("east", "west")] == before

    said = contexts.disconnect()
    assert said.code == 0
    assert [contexts.get(name, clusters).get("data") for name in ("east", "west")] == [None, None]
    assert "nothing is to be changed" in contexts.disconnect().out


@pytest.mark.parametrize("helm", ["helm3", "helm4"])
def test_clusters_of_two_cas_trust_each_other_even_if_it_breaks_in_the_middle(
    contexts: Contexts, kube_programs: Path, helm: str
) -> None:
    """The helm of the second cluster fails at first; what was done before stays done."""
    program = str(kube_programs / helm)
    for number, name in enumerate(("east", "west"), 1):
        assert contexts.install(name, number, f"--helm={program}").code == 0
    dry = contexts.connect("--dry-run", helm=program)
    assert dry.code == 0
    assert "west: trust 'clustermesh CA" in dry.out
    assert contexts.get("east", "configmaps/clustermesh-ca-bundle") is None

    missing = contexts.connect(helm="no-such-helm")
    assert missing.code == 1
    assert "there is no no-such-helm" in missing.out
    assert contexts.get("east", "configmaps/clustermesh-ca-bundle") is None

    broken = contexts.directory / "helm"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *west*) exit 1;; *) exec {program} "$@";; esac\n')
    broken.chmod(0o700)
    said = contexts.connect(helm=str(broken))
    assert said.code == 1
    assert "1 of 4 changes are done; run it again to go on" in said.err
    assert contexts.get("east", "secrets/clustermesh-clusters") is None
    east = contexts.apiserver("east")

    said = contexts.connect(helm=program)
    assert (said.code, said.err) == (0, "")
    assert "east: trust" not in said.out
    assert "west: use the bundle of CAs, which etcd has not read yet\n" in said.out
    assert contexts.apiserver("east") == east  # and so it is not restarted again
    bundles = [
        contexts.get(name, "configmaps/clustermesh-ca-bundle")["data"]["ca.crt"]
        for name in ("east", "west")
    ]
    assert [bundle.count("BEGIN CERTIFICATE") for bundle in bundles] == [2, 2]
    assert set(bundles[0].split("-----END")) == set(bundles[1].split("-----END"))
    for name in ("east", "west"):
        assert "clustermesh-ca-bundle" in str(contexts.apiserver(name)["spec"]["volumes"])
    assert "nothing is to be changed" in contexts.connect(helm=program).out


def test_nothing_is_changed_when_something_stands_in_the_way(contexts: Contexts) -> None:
    assert contexts.install("east", 1).code == 0
    assert contexts.install("west", 1, "--inherit-ca=east", "--set=agent.routing=direct").code == 0
    put_node(contexts.clusters["west"], "node1", "10.1.0.0/16", "192.0.2.1")
    said = contexts.connect()
    assert said.code == 1
    errors = [line for line in said.out.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: east (east) and west (west) both have the cluster id 1",
        "error: east (east) and west (west) route differently: tunnel and direct",
        "error: pod CIDR 10.1.0.0/24 of east/node1 is in pod CIDR 10.1.0.0/16 of west/node1",
        "error: 192.0.2.1 of node west/node1 is 192.0.2.1 of node east/node1",
    ]
    assert "service CIDR 10.96.0.0/16 of west is service CIDR 10.96.0.0/16 of east" in said.out
    assert "nothing was changed: 4 of the above stand in the way" in said.err
    assert contexts.get("east", "secrets/clustermesh-clusters") is None


def test_clusters_that_helm_writes_are_left_to_helm(contexts: Contexts) -> None:
    clusters = "--set=clustermesh.config.enabled=true"
    assert contexts.install("east", 1, clusters).code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0
    said = contexts.connect()
    assert said.code == 1
    assert "east: its connected clusters are written by helm" in said.out


def test_one_sided_connections_leave_the_other_side_to_its_administrator(
    contexts: Contexts,
) -> None:
    assert contexts.install("east", 1).code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0
    said = contexts.connect("--connection-mode=unicast", "--endpoint=west=west.example.org")
    assert said.code == 0
    assert "https://west.example.org:2379" in said.out
    assert "left to do: west does not read east yet" in said.out
    assert contexts.get("west", "secrets/clustermesh-clusters") is None
    command = said.out.partition("clustermesh connect ")[2].splitlines()[0]
    assert contexts.run("connect", *command.split()).code == 0
    assert "left to do" not in contexts.connect("--connection-mode=unicast").out


def test_what_is_not_there_is_said_with_what_to_do(contexts: Contexts) -> None:
    said = contexts.connect()
    assert said.code == 1
    assert "clustermesh is not installed in east" in said.err
    assert "clustermesh install --context east" in said.err
    said = contexts.run("connect", "--context=east", "--destination-context=nowhere")
    assert "no context 'nowhere'" in said.err


def test_a_cluster_is_exposed_and_taken_out_of_the_mesh(contexts: Contexts) -> None:
    assert contexts.install("east", 1, "--service-type=ClusterIP").code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0
    said = contexts.connect()
    assert said.code == 1
    assert "error: east: others cannot reach its etcd: its Service is of type ClusterIP" in said.out
    flags = ("--context=east", "--service-type=NodePort", "--server-name=east.example.org")
    assert contexts.run("enable", *flags).code == 0
    assert contexts.connect().code == 0
    said = contexts.run("disable", "--context=east")
    assert (said.code, said.err) == (0, "")
    assert "east: disconnected from west\n" in said.out
    assert contexts.get("east", "secrets/clustermesh-clusters") is None
    assert contexts.get("east", "services/clustermesh-apiserver")["spec"]["type"] == "ClusterIP"

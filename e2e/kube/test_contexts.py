"""`clustermesh install`, `connect`, … against two real API servers, with the real helm."""

from __future__ import annotations

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
        self._kubeconfig = directory / "kubeconfig"
        self._helm = programs / "helm4"
        merged: dict[str, Any] = {"clusters": [], "users": [], "contexts": []}
        for cluster in clusters:
            config = yaml.safe_load(cluster.kubeconfig.read_text())
            for kind, entries in merged.items():
                entries += config[kind]
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
def contexts(clusters: list[KubeCluster], kube_programs: Path, tmp_path: Path) -> Iterator[Contexts]:
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

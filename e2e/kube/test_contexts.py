"""`clustermesh install`, `connect`, … against two real API servers, with the real helm."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from e2e.mesh import eventually

from .cluster import KubeCluster
from .conftest import NewKube
from .contexts import NAMESPACE, Contexts, Daemons

_CLUSTERS: Final = "secrets/clustermesh-clusters"
_NODES: Final = {
    "east": ("10.1.0.0/24", "192.0.2.1"),
    "west": ("10.2.0.0/24", "192.0.2.2"),
    "north": ("10.3.0.0/24", "192.0.2.3"),
}


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
        if cluster.helm("list", "--namespace", NAMESPACE, "--all", "--short", version=3):
            cluster.helm("uninstall", "clustermesh", "--namespace", NAMESPACE)
        for name in ("secrets/clustermesh-clusters", "configmaps/clustermesh-ca-bundle"):
            path = f"/api/v1/namespaces/{NAMESPACE}/{name}"
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
    assert "send each other UDP, to the ports 8472 (vxlan), 4240 (probes)." in said.out
    said = contexts.install("east", 1, "--set=encryption.enabled=true")
    assert said.code == 0
    assert "UDP, to the ports 51871-51874 (WireGuard), 4240 (probes)." in said.out
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
    file = yaml.safe_load(b64decode(contexts.get("east", clusters)["data"]["west"]))
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
    assert sorted(bundles[0].splitlines()) == sorted(bundles[1].splitlines())
    for name in ("east", "west"):
        assert "clustermesh-ca-bundle" in str(contexts.apiserver(name)["spec"]["volumes"])
    assert "nothing is to be changed" in contexts.connect(helm=program).out
    assert contexts.install("east", 1, f"--helm={program}").code == 0  # keeps what is set
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


def test_all_read_all_in_a_mesh_of_three(
    contexts: Contexts, kube_programs: Path, new_kube: NewKube
) -> None:
    north = new_kube("north")
    put_node(north, "node1", *_NODES["north"])
    contexts = Contexts(contexts.directory, kube_programs, [*contexts.clusters.values(), north])
    assert contexts.install("east", 1).code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0
    assert contexts.install("north", 3, "--inherit-ca=east").code == 0
    star = ("connect", "--context=east", "--destination-context=west,north")
    said = contexts.run(*star, "--connection-mode=mesh", "--dry-run")
    assert (said.code, said.out.count(" (not done: dry run)")) == (0, 6)
    assert contexts.run(*star).code == 0
    assert peers(contexts) == {"east": {"west", "north"}, "west": {"east"}, "north": {"east"}}
    said = contexts.run(*star, "--connection-mode=mesh")
    assert [line for line in said.out.splitlines() if ": connect to " in line] == [
        "west: connect to north at https://192.0.2.3:32379",
        "north: connect to west at https://192.0.2.2:32379",
    ]
    apart = ("disconnect", "--context=north", "--destination-context=east,west")
    assert contexts.run(*apart).code == 0
    assert peers(contexts) == {"east": {"west"}, "west": {"east"}, "north": set()}


def peers(contexts: Contexts) -> dict[str, set[str]]:
    """Who reads whom."""
    clusters = {name: contexts.get(name, _CLUSTERS) for name in contexts.clusters}
    return {name: set(secret.get("data") or ()) for name, secret in clusters.items()}


def test_a_cluster_that_is_gone_is_disconnected_by_its_name(contexts: Contexts) -> None:
    assert contexts.install("east", 1).code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0
    assert contexts.connect().code == 0
    said = contexts.run("disconnect", "--context=east", "--destination-cluster=west")
    assert (said.code, said.out) == (0, "east: disconnect from west\n")
    assert "data" not in contexts.get("east", "secrets/clustermesh-clusters")


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


# The way to a peer


@pytest.fixture
def west(contexts: Contexts, tmp_path: Path) -> Iterator[Daemons]:
    """An etcd of west that lets east in, at an address that is in no certificate."""
    assert contexts.install("east", 1).code == 0
    assert contexts.install("west", 2, "--inherit-ca=east").code == 0
    with Daemons(contexts, "west", tmp_path) as west:
        (west.clusters / "east").touch()
        west.start_apiserver(2)
        yield west


def test_the_way_to_a_peer_is_tried_step_by_step(contexts: Contexts, west: Daemons) -> None:
    said = contexts.connect("--connection-mode=unicast", f"--endpoint=west={west.endpoint}")
    assert said.code == 0
    assert "cannot be reached from this machine" not in said.out
    said = contexts.run("troubleshoot", "--context=east")
    steps = [line.split() for line in said.out.splitlines()]
    assert (said.code, said.err) == (0, "")
    assert [step[:2] for step in steps[2:]] == [
        ["west"],
        ["ok", "file"],
        ["endpoint", f"https://{west.endpoint}"],
        ["ok", "name"],
        ["ok", "tcp"],
        ["ok", "tls"],
        ["ok", "login"],
        ["ok", "cluster-config"],
        ["ok", "canaries"],
        ["ok", "heartbeat"],
        ["etcd", "version"],
    ]
    assert "as west.mesh.cilium.io" in said.out
    assert "as remote-east" in said.out
    assert "id 2, 255 clusters at most" in said.out


def test_a_peer_that_does_not_know_us_is_found_out(contexts: Contexts, west: Daemons) -> None:
    flags = ("--connection-mode=unicast", f"--endpoint=west={west.endpoint}")
    assert contexts.connect(*flags).code == 0
    (west.clusters / "east").unlink()

    def is_refused() -> bool:
        return "FAIL  login" in contexts.run("troubleshoot", "--context=east").out

    eventually("east's user is gone", is_refused)
    said = contexts.run("troubleshoot", "--context=east")
    assert said.code == 1
    assert "user remote-east may not read" in said.out
    assert "is it connected with us? its apiserver makes the user" in said.out


def test_a_peer_of_another_ca_is_found_out_with_both_certificates(
    contexts: Contexts, west: Daemons
) -> None:
    assert (
        contexts.connect("--connection-mode=unicast", f"--endpoint=west={west.endpoint}").code == 0
    )
    contexts.clusters["east"].helm("uninstall", "clustermesh", "--namespace", NAMESPACE)
    assert contexts.install("east", 1).code == 0  # with a CA of its own
    said = contexts.run("troubleshoot", "--context=east", "--peer=west")
    assert said.code == 1
    assert "FAIL  tls             the server's certificate is by a CA" in said.out
    details = said.out.partition("FAIL  tls")[2]
    for words in ("theirs: clustermesh-apiserver.cilium.io", "ours: remote-east", "trusted: "):
        assert words in details
    assert "login" not in details


def test_a_dump_has_all_but_secrets(contexts: Contexts, tmp_path: Path) -> None:
    assert contexts.install("east", 1).code == 0
    target = tmp_path / "dump.tar.gz"
    said = contexts.run("sysdump", "--context=east", f"--file={target}")
    assert (said.code, said.err) == (0, "")
    with tarfile.open(target) as archive:
        files = {
            name.partition("/")[2]: content.read()
            for name in archive.getnames()
            if (content := archive.extractfile(name)) is not None
        }
    assert files["failures.txt"] == b""
    inside = f"east/{NAMESPACE}"
    assert {f"{inside}/deployments.json", f"{inside}/configmaps.json", "east/nodes.json"} <= (
        files.keys()
    )
    secrets = json.loads(files[f"{inside}/secrets.json"])["items"]
    assert "clustermesh-ca" in {secret["metadata"]["name"] for secret in secrets}
    key = contexts.get("east", "secrets/clustermesh-ca")["data"]["ca.key"].encode()
    assert not any(key in content or b64decode(key) in content for content in files.values())


# Whole clusters at a glance


@pytest.mark.parametrize("verb", ["connectivity test", "encryption status", "encryption rotate"])
def test_without_an_agent_nothing_is_said_to_be_well(contexts: Contexts, verb: str) -> None:
    assert contexts.install("east", 1).code == 0
    said = contexts.run(*verb.split(), "--context=east")
    assert (said.code, said.out) == (1, "")
    assert "east has no pod of an agent" in said.err


def test_status_asks_daemons_through_the_api_server(kube_programs: Path, tmp_path: Path) -> None:
    """In a network of its own: API servers pass nothing on to pods on loopback addresses."""
    script = 'ip link set lo up && ip address add 198.51.100.1/32 dev lo && exec "$@"'
    command = [sys.executable, "-m", "e2e.kube.glance", str(tmp_path)]
    ran = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    well, alone, table = ran.stdout.split("---\n")
    (cluster,) = json.loads(well)["clusters"]
    assert cluster["troubles"] == []
    assert (cluster["apiservers_ready"], cluster["agents_ready"]) == (1, 1)
    assert cluster["tables"]["nodes"] == 1
    (cluster,) = json.loads(alone)["clusters"]
    (peer,) = cluster["peers"]
    assert (peer["name"], peer["ready"], peer["agents"]) == ("west", 0, 1)
    assert "node1: " in peer["last_failure"]
    assert "connection refused" in peer["last_failure"]
    (trouble,) = cluster["troubles"]
    assert trouble.startswith("node1: west is ")
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "east (id 1), context east, version 0.1.0"
    assert lines[1].startswith("apiservers 1 of 1 ready")
    assert lines[2] == "agents 1 of 1 ready"
    assert lines[4].startswith("west - 0 of 1 0 0 0 0 - - node1: ")

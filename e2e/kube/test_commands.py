"""
What an operator types, of whole clusters: commands with `--context`, and agents that run.

Agents listen on loopback, so they are asked by `exec`: through a real API server, and the kubelets
of the sandbox.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import tarfile
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

import pytest
import yaml

from clustermesh.cli.client import AGENT, get
from clustermesh.sandbox.namespace import run_inside
from e2e.conftest import NewMesh, new_mesh
from e2e.mesh import Mesh, cli, eventually

from .chart import CHART

__all__ = ["new_mesh"]

pytestmark = [
    pytest.mark.xdist_group("sandbox"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(300),  # many commands, each of them a process in every agent's pod
]

_BOTH: Final = "--context=cluster1,cluster2"
_NODES: Final = {f"cluster{c}/node{n}" for c in (1, 2) for n in (1, 2)}


@pytest.fixture(scope="module")
def mesh(kube_programs: Path, new_mesh: NewMesh) -> Mesh:
    flags = ("--nodes=2", "--pods=1", "--encryption=wireguard")
    made = new_mesh("commands", "--api=kube", *flags)
    clustermesh(made, "status", "--wait")  # kubelets say a second later that pods are ready
    return made


@pytest.fixture
def stopped(mesh: Mesh) -> Iterator[str]:
    """A node whose agent does not run, and of which Kubernetes knows that."""
    mesh.stop("cluster2/node2")
    eventually("the Pod is not ready", lambda: not is_ready(mesh, "cluster2", "node2"))
    yield "cluster2/node2"
    mesh.start("cluster2/node2")
    eventually("the Pod is ready", lambda: is_ready(mesh, "cluster2", "node2"))


def inside(mesh: Mesh, *command: str, code: int = 0) -> str:
    """What a command says in the control plane of the first cluster."""
    return cli(
        "sandbox", "exec", "--name", mesh.name, "cluster1/control", "--", *command, code=code
    )


def clustermesh(mesh: Mesh, *command: str, code: int = 0) -> str:
    """What `clustermesh COMMAND` says of both clusters."""
    return inside(mesh, "clustermesh", *command, _BOTH, code=code)


def is_ready(mesh: Mesh, cluster: str, node: str) -> bool:
    pod = f"pod/clustermesh-agent-{node}"
    condition = '{.status.conditions[?(@.type=="Ready")].status}'
    ask = ("kubectl", "--context", cluster, "-n", "clustermesh", "get", pod)
    return inside(mesh, *ask, f"-o=jsonpath={condition}").strip() == "True"


def keys(mesh: Mesh) -> dict[str, str]:
    """The public key of every node, as `encryption status` prints it."""
    said = json.loads(clustermesh(mesh, "encryption", "status", "-o=json"))
    assert said["troubles"] == []
    return {one["node"]: one["encryption"]["public_key"] for one in said["nodes"]}


def test_status_knows_every_daemon(mesh: Mesh) -> None:
    for cluster in json.loads(clustermesh(mesh, "status", "-o=json"))["clusters"]:
        assert cluster["troubles"] == []
        assert (cluster["apiservers_ready"], cluster["apiservers"]) == (1, 1)
        assert (cluster["agents_ready"], cluster["agents"]) == (2, 2)
        (peer,) = cluster["peers"]
        assert (peer["ready"], peer["paths_well"], peer["paths"]) == (2, 8, 8)


def test_connectivity_is_tested_from_every_node(mesh: Mesh) -> None:
    said = json.loads(clustermesh(mesh, "connectivity", "test", "-o=json"))
    assert said["troubles"] == []
    assert {test["source"] for test in said["tests"]} == _NODES
    ways = [row for test in said["tests"] for row in test["rows"]]
    assert [row["state"] for row in ways] == ["well"] * 16  # 4 nodes, 2 others, 2 versions of IP


def test_a_way_that_is_blocked_is_named_by_those_who_use_it(mesh: Mesh) -> None:
    rule = "type filter hook input priority 0; udp dport 51871-51874 drop;"
    mesh.run("cluster2/node1", "nft", f"table inet blocked {{ chain input {{ {rule} }}; }}")
    try:
        said = clustermesh(mesh, "connectivity", "test", code=1)
    finally:
        mesh.run("cluster2/node1", "nft", "delete table inet blocked")
    for node in ("node1", "node2"):
        assert f"cluster1/{node} to cluster2/node1 over IPv4: UDP port 5187" in said
        assert f"cluster1/{node} to cluster2/node2" not in said
    clustermesh(mesh, "status", "--wait")


def test_every_node_changes_its_key(mesh: Mesh) -> None:
    before = keys(mesh)
    assert before.keys() == _NODES
    said = clustermesh(mesh, "encryption", "rotate")
    after = keys(mesh)
    assert [line.split()[0] for line in said.splitlines()] == sorted(_NODES)
    assert not set(before.values()) & set(after.values())
    assert all(f"{node} has a new key: {key}" in said for node, key in after.items())


def test_where_an_agent_does_not_run_that_is_said_and_no_key_is_changed(
    mesh: Mesh, stopped: str
) -> None:
    why = "agent ended with exit code 1"
    said = json.loads(clustermesh(mesh, "encryption", "status", "-o=json", code=1))
    assert len(said["nodes"]) == 3
    assert [line for line in said["troubles"] if line.startswith(f"cluster2: node2: {why}")]
    before = {one["node"]: one["encryption"]["public_key"] for one in said["nodes"]}
    said = clustermesh(mesh, "encryption", "rotate", code=1)
    assert f"error: cluster2: node2 does not answer: {why}" in said
    assert "no key was changed" in said
    said = clustermesh(mesh, "connectivity", "test", code=1)
    assert f"{stopped}: {why}" in said
    assert f"cluster1/node1 to {stopped}" not in said  # its kernel goes on
    said = clustermesh(mesh, "status", code=1)
    assert "agents      1 of 2 ready" in said
    assert f"node2: does not answer: {why}" in said
    mesh.start(stopped)
    eventually("it runs", lambda: before.items() <= keys(mesh).items())


def test_a_dump_has_every_table_and_log_of_every_daemon(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "dump.tar.gz"
    inside(mesh, "clustermesh", "sysdump", "--context=cluster1", f"--file={file}")
    with tarfile.open(file) as archive:
        found = {
            name.partition("/")[2]: content.read()
            for name in archive.getnames()
            if (content := archive.extractfile(name)) is not None
        }
    assert found["failures.txt"] == b""
    for node in ("node1", "node2"):
        tables = mesh.status(f"cluster1/{node}")["tables"]
        assert {"peers", "paths", "ipcache", "routes"} <= tables.keys()
        pod = f"cluster1/clustermesh/clustermesh-agent-{node}"
        for table in tables:
            assert "rows" in json.loads(found[f"{pod}/{table}.json"])
        assert b"the datapath is attached" in found[f"{pod}/agent.log"]
    pod = "cluster1/clustermesh/clustermesh-apiserver-control"
    assert json.loads(found[f"{pod}/endpoints.json"])["rows"]
    assert {f"{pod}/apiserver.log", f"{pod}/etcd.log"} <= found.keys()


def test_the_dashboard_asks_for_what_an_agent_says(mesh: Mesh) -> None:
    ask = partial(get, "agent", AGENT, "/metrics")
    there = run_inside(mesh.world.sandbox.namespace(mesh.node("cluster1/node1")), ask).decode()
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"\b(?:clustermesh|process)_\w+", target["expr"]):
                assert f"\n{name}" in there, panel["title"]


# The kubelet that the sandbox has


def test_kubectl_runs_commands_in_pods_and_reads_their_logs(mesh: Mesh) -> None:
    ours = ("kubectl", "--namespace=clustermesh")
    agent = "clustermesh-agent-node2"
    said = inside(mesh, *ours, "exec", agent, "--", "clustermesh", "show", "nodes", "-o=json")
    assert {row["cluster"] for row in json.loads(said)["rows"]} == {"cluster1", "cluster2"}
    address = inside(
        mesh, "kubectl", "exec", "node2-pod1", "--", "ip", "-4", "address", "show", "eth0"
    )
    assert "inet 10.1.2.11/" in address
    assert "exit code 7" in inside(mesh, *ours, "exec", agent, "--", "sh", "-c", "exit 7", code=7)
    lines = inside(mesh, *ours, "logs", agent, "--tail=3").splitlines()
    assert len(lines) == 3
    pipe = f"echo hello | kubectl --namespace=clustermesh exec -i {agent} -- cat"
    assert inside(mesh, "sh", "-c", pipe).strip() == "hello"


def test_nobody_but_the_api_server_may_ask_the_kubelet(mesh: Mesh, tmp_path: Path) -> None:
    plane = mesh.world.plane(mesh.world.sandbox.cluster("cluster1"))
    assert ask_kubelet(mesh, plane.admin) == HTTPStatus.OK
    (account,) = yaml.safe_load(plane.account.read_text())["users"]
    files = (tmp_path / "account.crt", tmp_path / "account.key")
    for file, field in zip(files, ("client-certificate-data", "client-key-data"), strict=True):
        file.write_bytes(b64decode(account["user"][field]))
    assert ask_kubelet(mesh, files) == HTTPStatus.FORBIDDEN
    with pytest.raises(OSError, match=r"certificate required|closed connection"):
        ask_kubelet(mesh, None)


def ask_kubelet(mesh: Mesh, login: tuple[Path, Path] | None) -> int:
    """What it answers, as a code of HTTP, to who comes by another way than the API server."""
    cluster = mesh.world.sandbox.cluster("cluster1")
    context = ssl.create_default_context(cafile=str(mesh.world.plane(cluster).ca))
    if login is not None:
        context.load_cert_chain(*login)
    direct, tls = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    opener = urllib.request.build_opener(direct, tls)
    path = "/containerLogs/clustermesh/clustermesh-agent-node1/agent"

    def ask() -> int:
        try:
            with opener.open(f"https://172.30.1.1:10250{path}", timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return run_inside(mesh.world.sandbox.namespace(cluster.control), ask)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustermesh.sandbox.kube.api import RefusedError
from clustermesh.sandbox.process import Process, is_running
from e2e.mesh import eventually

from .cluster import KubeCluster
from .conftest import NewKube


@pytest.fixture
def node(kube: KubeCluster, namespace: str) -> Iterator[str]:
    """A Node. Pods on one that is not there get no endpoints."""
    name = f"node-of-{namespace}"
    kube.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    yield name
    kube.call("DELETE", f"/api/v1/nodes/{name}")


def test_the_api_server_is_a_release_of_kubernetes(kube: KubeCluster) -> None:
    version = kube.call("GET", "/version")
    assert version["major"] == "1"
    assert version["gitVersion"].startswith(f"v1.{version['minor']}.")


def test_a_user_may_do_what_rbac_grants_and_nothing_else(kube: KubeCluster, namespace: str) -> None:
    as_user = ("--kubeconfig", str(kube.kubeconfig_of("ada", ["readers"])), "-n", namespace)
    with pytest.raises(RuntimeError, match='User "ada" cannot list resource "configmaps"'):
        kube.kubectl("get", "configmaps", *as_user)

    names = ("-n", namespace, "readers")
    kube.kubectl("create", "role", *names, "--verb=list", "--resource=configmaps")
    kube.kubectl("create", "rolebinding", *names, "--role=readers", "--group=readers")
    eventually("RBAC knows the role", lambda: _may(kube, "list", "configmaps", *as_user))
    assert "kube-root-ca.crt" in kube.kubectl("get", "configmaps", *as_user)
    assert not _may(kube, "delete", "configmaps", *as_user)


def test_the_token_of_a_pod_names_the_node_that_the_pod_is_on(
    kube: KubeCluster, namespace: str, node: str
) -> None:
    pod = _create_pod(kube, namespace, "agent", node)
    request = {
        "spec": {
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": "agent",
                "uid": pod["metadata"]["uid"],
            }
        }
    }
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    token = kube.call("POST", f"{account}/token", request)["status"]["token"]

    reviews = "/apis/authentication.k8s.io/v1/tokenreviews"
    user = kube.call("POST", reviews, {"spec": {"token": token}})["status"]["user"]
    assert user["username"] == f"system:serviceaccount:{namespace}:default"
    assert user["extra"]["authentication.kubernetes.io/node-name"] == [node]


def test_the_pods_of_a_service_are_in_its_endpoint_slices(
    kube: KubeCluster, namespace: str, node: str
) -> None:
    services = f"/api/v1/namespaces/{namespace}/services"
    spec = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    kube.call("POST", services, {"metadata": {"name": "web"}, "spec": spec})
    for name, ip in {"web-1": "10.1.0.1", "web-2": "10.1.0.2"}.items():
        _create_pod(kube, namespace, name, node)
        _set_status(kube, namespace, name, ip, ready=True)
    _eventually_slices(kube, namespace, ["10.1.0.1:8080 ready", "10.1.0.2:8080 ready"])

    _set_status(kube, namespace, "web-2", "10.1.0.2", ready=False)
    _eventually_slices(kube, namespace, ["10.1.0.1:8080 ready", "10.1.0.2:8080 not ready"])

    kube.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/web-1", {"gracePeriodSeconds": 0})
    _eventually_slices(kube, namespace, ["10.1.0.2:8080 not ready"])

    kube.call("DELETE", f"{services}/web")
    _eventually_slices(kube, namespace, [])


@pytest.mark.parametrize("version", [3, 4])
def test_helm_of_either_version_talks_to_the_cluster(kube: KubeCluster, version: int) -> None:
    assert kube.helm("version", "--short", version=version).startswith(f"v{version}.")
    releases = kube.helm("list", "--all-namespaces", "--output=json", version=version)
    assert json.loads(releases) == []


def test_two_clusters_live_side_by_side(new_kube: NewKube) -> None:
    east, west = new_kube("east"), new_kube("west")
    maps = "/api/v1/namespaces/default/configmaps"
    east.call("POST", maps, {"metadata": {"name": "only-in-east"}})
    assert east.exists(f"{maps}/only-in-east")
    assert not west.exists(f"{maps}/only-in-east")
    assert east.kubectl("config", "current-context").strip() == "east"
    assert west.kubectl("config", "current-context").strip() == "west"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restarted_api_server_has_all_objects(new_kube: NewKube, number: signal.Signals) -> None:
    east = new_kube("east")
    maps = "/api/v1/namespaces/default/configmaps"
    made = east.call("POST", maps, {"metadata": {"name": "kept"}, "data": {"a": "b"}})
    east.stop(number)
    with pytest.raises(OSError, match="refused"):
        east.call("GET", maps)
    east.start()
    assert east.call("GET", f"{maps}/kept") == made


def test_what_was_compacted_is_gone(new_kube: NewKube) -> None:
    east = new_kube("east")
    maps = "/api/v1/namespaces/default/configmaps"
    for name in ("one", "two"):
        old = east.call("POST", maps, {"metadata": {"name": name}})["metadata"]["resourceVersion"]
    page = east.call("GET", f"{maps}?limit=1")
    east.call("POST", maps, {"metadata": {"name": "three"}})
    assert east.compact() > int(old)

    with pytest.raises(RefusedError, match="410: The provided continue parameter is too old"):
        east.call("GET", f"{maps}?limit=1&continue={page['metadata']['continue']}")
    watch = f"{maps}?watch=1&timeoutSeconds=1&resourceVersion={old}"
    assert [event["object"]["metadata"]["name"] for event in _events(east, watch)] == ["three"]

    east.restart()
    (refused,) = _events(east, watch)
    assert refused["type"] == "ERROR"
    assert refused["object"]["code"] == 410


def test_a_cluster_can_live_in_a_network_namespace(kube_programs: Path, tmp_path: Path) -> None:
    script = """
        for command in ("link set lo up", "address add 10.99.0.1/32 dev lo"):
            subprocess.run(["ip", *command.split()], check=True)
        here = ipaddress.IPv4Address("10.99.0.1")
        with KubeCluster(directory, "east", address=here, controllers=()) as east:
            slices = "/apis/discovery.k8s.io/v1/endpointslices"
            (own,) = eventually("it is in a slice", lambda: east.call("GET", slices)["items"])
            print(*own["endpoints"][0]["addresses"])
        """
    with _python(script, tmp_path, "unshare", "--net") as run:
        assert run.communicate(timeout=60)[0] == "10.99.0.1\n"
    assert run.returncode == 0


def test_nothing_is_left_of_a_run_that_was_killed(kube_programs: Path, tmp_path: Path) -> None:
    script = """
        with KubeCluster(directory, "east", controllers=()) as east:
            print("up", flush=True)
            time.sleep(600)
        """
    with _python(script, tmp_path) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "up\n"
            servers = _processes_of(tmp_path)
            assert len(servers) == 3  # with the script itself
        finally:
            run.kill()
    eventually("its servers end", lambda: not any(map(is_running, servers)))


def _python(script: str, directory: Path, *around: str) -> subprocess.Popen[str]:
    """Run a script about a `directory` in a process of its own."""
    start = """
        import ipaddress, pathlib, subprocess, sys, time
        from e2e.kube.cluster import KubeCluster
        from e2e.mesh import eventually
        directory = pathlib.Path(sys.argv[1])
        """
    text = textwrap.dedent(start) + textwrap.dedent(script)
    return subprocess.Popen(
        [*around, sys.executable, "-c", text, str(directory)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )


def _may(kube: KubeCluster, *what: str) -> bool:
    try:
        return kube.kubectl("auth", "can-i", *what).strip() == "yes"
    except RuntimeError:
        return False


def _create_pod(kube: KubeCluster, namespace: str, name: str, node: str) -> Any:
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
    metadata = {"name": name, "labels": {"app": "web"}}
    pods = f"/api/v1/namespaces/{namespace}/pods"
    return kube.call("POST", pods, {"metadata": metadata, "spec": spec})


def _set_status(kube: KubeCluster, namespace: str, name: str, ip: str, *, ready: bool) -> None:
    """Say what a kubelet would."""
    condition = {"type": "Ready", "status": str(ready)}
    status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]}
    pod = f"/api/v1/namespaces/{namespace}/pods/{name}"
    kube.call("PATCH", f"{pod}/status", {"status": status})


def _eventually_slices(kube: KubeCluster, namespace: str, wanted: list[str]) -> None:
    def look() -> bool:
        found = _slices(kube, namespace)
        assert found == wanted
        return True

    eventually(f"the EndpointSlices are {wanted}", look)


def _slices(kube: KubeCluster, namespace: str) -> list[str]:
    """Each endpoint of the namespace, `ADDRESS:PORT ready` or `not ready`."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    return sorted(
        f"{address}:{port['port']} {'ready' if endpoint['conditions']['ready'] else 'not ready'}"
        for slice_ in kube.call("GET", path)["items"]
        for endpoint in slice_["endpoints"] or ()
        for address in endpoint["addresses"]
        for port in slice_["ports"]
    )


def _events(kube: KubeCluster, path: str) -> list[Any]:
    """What a watch says until it ends by itself."""
    return [json.loads(line) for line in kube.kubectl("get", "--raw", path).splitlines()]


def _processes_of(directory: Path) -> list[Process]:
    """All processes that have `directory` in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(directory) in command:
            found.append(Process(int(entry.name), started))
    return found

"""Whatever happens to the API server: nothing that is exported goes, and `status` says why."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from clustermesh.tests.etcd_server import EtcdServer, Proxy, until

from .cluster import KubeCluster
from .conftest import NewKube
from .replica import Replica, create_crds, replica
from .sources import Api, endpoints, node, pod, service

HTTP: Final = {"http": 80}
TAKEOVER: Final = 40.0  # seconds; a lease lasts 15


@pytest.fixture
def lost(new_kube: NewKube) -> KubeCluster:
    """A cluster with something of each kind in it."""
    cluster = new_kube("east")
    create_crds(cluster)
    Api(cluster).apply(
        node("node1", "192.0.2.1", "10.1.0.0/24"),
        service("default", "web", "10.96.7.1", ports=HTTP, **{"global": "true"}),
        endpoints("default", "web", "10.1.0.7", ports=HTTP),
        pod("default", "web-1", "192.0.2.1", "10.1.0.7", app="web"),
    )
    return cluster


@asynccontextmanager
async def nothing_withdrawn(apiserver: Replica, *but: str) -> AsyncIterator[None]:
    """Whatever is exported now is still there at the end, and was all the time."""
    before = await apiserver.births()
    assert {key.rsplit("/", 1)[1] for key in before} >= {"node1", "web", "10.1.0.7"}
    yield
    after = await apiserver.births()
    assert before.items() - after.items() == {(key, before[key]) for key in but}


def problem(apiserver: Replica, *words: str) -> Callable[[], bool]:
    """Whether the status names a problem with all these words in it."""
    return lambda: any(
        all(word in f"{one.where}: {one.error}" for word in words)
        for one in apiserver.source.problems
    )


def healthy(apiserver: Replica) -> bool:
    return apiserver.source.problems == []


async def is_exported(apiserver: Replica, key: str) -> bool:
    return key in await apiserver.exports("cilium/state/")


async def test_it_is_restarted(lost: KubeCluster, own_etcd_server: EtcdServer) -> None:
    async with replica(own_etcd_server, **Api(lost).settings) as apiserver:
        await apiserver.ready()
        async with nothing_withdrawn(apiserver):
            await asyncio.to_thread(lost.stop)
            await until(problem(apiserver, "services", lost.url, "Connection refused"))
            assert apiserver.status.ready
            await asyncio.to_thread(lost.start)
            await until(lambda: healthy(apiserver))
            Api(lost).apply(
                service("default", "new", "10.96.7.2", ports=HTTP, **{"global": "true"})
            )
            new = "cilium/state/services/v1/east/default/new"
            await until(lambda: is_exported(apiserver, new))


async def test_it_has_forgotten_what_happened_while_the_connection_was_cut(
    lost: KubeCluster, own_etcd_server: EtcdServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(int(lost.url.rpartition(":")[2]), lost.url.split("/")[2].rpartition(":")[0])
    await proxy.mend()
    kubeconfig = changed(lost, tmp_path, server=proxy.url)
    async with replica(own_etcd_server, "kube", kubeconfig=kubeconfig) as apiserver:
        await apiserver.ready()
        doomed = service("default", "doomed", "10.96.7.3", ports=HTTP, **{"global": "true"})
        Api(lost).apply(doomed)
        gone = "cilium/state/services/v1/east/default/doomed"
        await until(lambda: is_exported(apiserver, gone))
        own = "clustermesh/local/services/v1/east/default/doomed"
        async with nothing_withdrawn(apiserver, gone, own):
            proxy.cut()
            await until(problem(apiserver, "services"))
            Api(lost).delete(doomed)
            await asyncio.to_thread(lost.compact)
            await asyncio.to_thread(lost.restart)
            await proxy.mend()
            await until(lambda: healthy(apiserver))

            async def is_gone() -> bool:
                return not await is_exported(apiserver, gone)

            await until(is_gone)
    assert "410" in caplog.text
    proxy.cut()


async def test_our_token_expires(
    lost: KubeCluster, own_etcd_server: EtcdServer, tmp_path: Path
) -> None:
    allow(lost, "apiserver", ALL)
    token = tmp_path / "token"
    token.write_text(token_of(lost, "apiserver"))
    kubeconfig = changed(lost, tmp_path, user={"tokenFile": str(token)})
    async with replica(own_etcd_server, "kube", kubeconfig=kubeconfig) as apiserver:
        await apiserver.ready()
        async with nothing_withdrawn(apiserver):
            good = token.read_text()
            token.write_text("expired")
            await asyncio.to_thread(lost.restart)
            await until(problem(apiserver, "services", "401", "has it expired?"))
            token.write_text(good)
            await until(lambda: healthy(apiserver))


async def test_what_we_may_do_is_too_little(
    lost: KubeCluster, own_etcd_server: EtcdServer, tmp_path: Path
) -> None:
    few = [{**rule, "resources": [r for r in rule["resources"] if r != "pods"]} for rule in ALL]
    allow(lost, "apiserver", few)
    token = token_of(lost, "apiserver")
    kubeconfig = changed(lost, tmp_path, user={"token": token})
    async with replica(own_etcd_server, "kube", kubeconfig=kubeconfig) as apiserver:
        await until(problem(apiserver, "pods", "403", 'cannot list resource "pods"'))
        assert not apiserver.status.ready
        synced = await apiserver.names("cilium/synced/east/cilium/state/")
        assert not synced & {"ip/v1", "identities/v1"}  # what is not known is not said to be all
        allow(lost, "apiserver", ALL)
        await apiserver.ready()
        async with nothing_withdrawn(apiserver):
            allow(lost, "apiserver", few)
            await asyncio.to_thread(lost.restart)
            await until(problem(apiserver, "pods", "403"))


async def test_the_crds_are_missing_at_the_start(
    new_kube: NewKube, own_etcd_server: EtcdServer
) -> None:
    bare = new_kube("east")
    Api(bare).apply(node("node1", "192.0.2.1", "10.1.0.0/24"))
    async with replica(own_etcd_server, **Api(bare).settings) as apiserver:
        await until(problem(apiserver, "meshnodes", "404"))
        await until(problem(apiserver, "meshidentities", "404"))
        assert not apiserver.status.ready
        await until(lambda: is_exported(apiserver, "cilium/state/nodes/v1/east/node1"))
        create_crds(bare)
        await apiserver.ready()


async def test_the_crds_are_removed(lost: KubeCluster, own_etcd_server: EtcdServer) -> None:
    async with replica(own_etcd_server, **Api(lost).settings) as apiserver:
        await apiserver.ready()
        numbers = identities(lost)
        async with nothing_withdrawn(apiserver):
            for plural in ("meshidentities", "meshnodes"):
                crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
                lost.call("DELETE", f"{crds}/{plural}.clustermesh.io")
            await until(problem(apiserver, "meshidentities", "404"))
            await until(lambda: not lost.exists("/apis/clustermesh.io/v1alpha1/meshnodes"))
            create_crds(lost)
            await until(lambda: healthy(apiserver) and identities(lost) == numbers)


async def test_objects_that_make_no_sense_are_problems_until_they_do(
    lost: KubeCluster, own_etcd_server: EtcdServer
) -> None:
    async with replica(own_etcd_server, **Api(lost).settings) as apiserver:
        await apiserver.ready()
        async with nothing_withdrawn(apiserver):
            bad = node("odd", "192.0.2.9", "10.1.9.0/24")
            bad["status"]["addresses"][0]["address"] = "odd.example.org"
            Api(lost).apply(bad)
            await until(problem(apiserver, "nodes odd", "odd.example.org"))
            assert apiserver.status.ready
            Api(lost).apply(node("odd", "192.0.2.9", "10.1.9.0/24"))
            await until(lambda: healthy(apiserver))
            await until(lambda: is_exported(apiserver, "cilium/state/nodes/v1/east/odd"))


async def test_a_replica_is_killed_while_it_leads(
    lost: KubeCluster, own_etcd_server: EtcdServer, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = EtcdServer(tmp_path / "other")
    await asyncio.to_thread(other.start)
    try:
        with apiserver_process(lost, other, tmp_path) as process:
            await until(lambda: bool(identities(lost)))  # it leads
            async with replica(own_etcd_server, **Api(lost).settings) as second:
                await second.ready()  # warm: all is there, the leader's identities too
                assert len(await second.names("cilium/state/identities/v1/id/")) == 1
                async with nothing_withdrawn(second):
                    leader = second.source.leader
                    process.send_signal(signal.SIGKILL)
                    Api(lost).apply(pod("default", "new", "192.0.2.1", "10.1.0.8", app="new"))
                    await until(lambda: second.source.leader != leader, within=TAKEOVER)
                    await until(lambda: is_exported(second, "cilium/state/ip/v1/default/10.1.0.8"))
                assert len(identities(lost)) == 2
    finally:
        await asyncio.to_thread(other.stop)


ALL: Final[list[dict[str, Any]]] = [
    {
        "apiGroups": ["", "discovery.k8s.io", "clustermesh.io"],
        "resources": [
            *("namespaces", "nodes", "pods", "services", "endpointslices"),
            *("meshnodes", "meshidentities"),
        ],
        "verbs": ["list", "watch"],
    },
    {
        "apiGroups": ["clustermesh.io"],
        "resources": ["meshidentities"],
        "verbs": ["get", "create", "delete"],
    },
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "create", "patch"],
    },
]
"""All that an apiserver does."""


def allow(cluster: KubeCluster, account: str, rules: list[dict[str, Any]]) -> None:
    """Let a service account do this, and nothing else."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account}
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    manifests: list[tuple[str, dict[str, Any]]] = [
        ("/api/v1/namespaces/default/serviceaccounts", {}),
        (f"{rbac}/clusterroles", {"rules": rules}),
        (f"{rbac}/clusterrolebindings", {"roleRef": role, "subjects": [subject]}),
    ]
    for path, manifest in manifests:
        if cluster.exists(f"{path}/{account}"):
            cluster.call("PATCH", f"{path}/{account}", manifest)
        else:
            cluster.call("POST", path, {"metadata": {"name": account}, **manifest})


def token_of(cluster: KubeCluster, account: str) -> str:
    path = f"/api/v1/namespaces/default/serviceaccounts/{account}/token"
    answer = cluster.call("POST", path, {"spec": {"expirationSeconds": 3600}})
    return str(answer["status"]["token"])


def changed(
    cluster: KubeCluster, directory: Path, *, server: str = "", user: dict[str, str] | None = None
) -> Path:
    """The kubeconfig of the cluster, with another way to it or another user."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    if server:
        host = cluster.url.split("/")[2].rpartition(":")[0]
        config["clusters"][0]["cluster"] |= {"server": server, "tls-server-name": host}
    if user is not None:
        config["users"][0]["user"] = user
    path = directory / "changed-kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def identities(cluster: KubeCluster) -> dict[str, Any]:
    """The labels of the MeshIdentities by name."""
    path = "/apis/clustermesh.io/v1alpha1/meshidentities"
    found = cluster.call("GET", path)["items"] if cluster.exists(path) else ()
    return {item["metadata"]["name"]: item["spec"]["labels"] for item in found}


@contextmanager
def apiserver_process(
    cluster: KubeCluster, server: EtcdServer, directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """An apiserver as a process, which can be killed."""
    cert, key = server.pair("admin")
    flags = {
        "cluster-name": "east",
        "cluster-id": 1,
        "source": "kube",
        "kubeconfig": cluster.kubeconfig,
        "etcd-endpoints": server.url,
        "etcd-ca": server.certs.path("ca", "crt"),
        "etcd-cert": cert,
        "etcd-key": key,
        "listen": f"unix:{directory}/apiserver.sock",
    }
    program = Path(sys.executable).with_name("clustermesh-apiserver")
    process = subprocess.Popen(
        [program, *(f"--{flag}={value}" for flag, value in flags.items())],
        env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()

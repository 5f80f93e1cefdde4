"""The MeshNode that an agent writes of its node, with its own token, as the chart lets it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from agent.main import serve_node
from agent.meshnode import keep_mesh_node
from agent.own import OwnNode
from agent.settings import AgentSettings
from clustermesh.daemon import Daemon
from clustermesh.kube import Kube, read_kubeconfig
from clustermesh.sandbox.kube.api import RefusedError
from clustermesh.status import DaemonStatus, MeshNodeStatus
from clustermesh.tests.etcd_server import running, until

from .accounts import Account
from .cluster import KubeCluster
from .release import Release
from .replica import create_crds

# Some objects of the chart are in no namespace: one installation at a time.
pytestmark = pytest.mark.xdist_group("chart")

_MESH_NODES: Final = "/apis/clustermesh.io/v1alpha1/meshnodes"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
_ADDRESSES: Final = [
    {"type": "InternalIP", "address": "192.0.2.7"},
    {"type": "InternalIP", "address": "2001:db8::7"},
]
_LOOK_EVERY: Final = 0.2  # seconds
_COLLECTED: Final = 90.0  # seconds: the garbage collector learns of new kinds twice a minute


class Machine:
    """A Node with a pod of the agent, and what the agent on it has to log in with."""

    def __init__(self, release: Release, name: str, directory: Path) -> None:
        self.name: Final = name
        self.kube: Final = release.kube
        self._directory = directory
        self.node: Final = self.kube.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
        hostname = {"type": "Hostname", "address": name}
        status = {"status": {"addresses": [hostname, *_ADDRESSES]}}
        self.kube.call("PATCH", f"/api/v1/nodes/{name}/status", status)
        spec = {
            "nodeName": name,
            "serviceAccountName": "clustermesh-agent",
            "containers": [{"name": "agent", "image": "agent"}],
        }
        pods = f"/api/v1/namespaces/{release.namespace}/pods"
        pod = self.kube.call("POST", pods, {"metadata": {"name": "agent"}, "spec": spec})
        release.account("agent", pod=pod["metadata"]).write_kubeconfig(self.kubeconfig)

    @property
    def kubeconfig(self) -> Path:
        return self._directory / "kubeconfig"

    def settings(self, **changes: Any) -> AgentSettings:
        """Of an agent there whose etcd does not answer, which is no reason to write nothing."""
        etcd = self._directory / "etcd.yaml"
        etcd.write_text("endpoints: ['http://127.0.0.1:1']\n")
        clusters = self._directory / "clusters"
        clusters.mkdir(exist_ok=True)
        chosen = {
            "cluster_name": "east",
            "cluster_id": 1,
            "node_name": self.name,
            "local_etcd_config": etcd,
            "clusters_dir": clusters,
            "state_dir": self._directory / "state",
            "datapath": "none",
            "kubeconfig": self.kubeconfig,
        }
        return AgentSettings(**{**chosen, **changes})

    async def mesh_node(self, name: str = "") -> Any:
        """What the API server has; None without it."""
        path = f"{_MESH_NODES}/{name or self.name}"
        try:
            return await asyncio.to_thread(self.kube.call, "GET", path)
        except RefusedError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def call(self, method: str, path: str, body: Any = None) -> None:
        """Do something as the administrator."""
        await asyncio.to_thread(self.kube.call, method, path, body)


@pytest.fixture
def machine(release: Release, tmp_path: Path) -> Iterator[Machine]:
    create_crds(release.kube)  # helm leaves them alone where they are
    release.put("install", {})
    made = Machine(release, f"node-{release.namespace}", tmp_path)
    yield made
    for path in (f"/api/v1/nodes/{made.name}", f"{_MESH_NODES}/{made.name}"):
        with suppress(RefusedError):  # the one takes the other along
            made.kube.call("DELETE", path)


@asynccontextmanager
async def keeping(settings: AgentSettings) -> AsyncIterator[Daemon]:
    """Keep the MeshNode, as the agent does, but more often."""
    daemon = Daemon("agent", "1.2.3")
    async with running(
        keep_mesh_node(
            settings, daemon, OwnNode(encrypts=False, has_kernel=False), look_every=_LOOK_EVERY
        )
    ):
        yield daemon


def shown(daemon: Daemon) -> MeshNodeStatus:
    """What `/status` says of it."""
    return msgspec.convert(daemon.status(), DaemonStatus).mesh_node or MeshNodeStatus()


async def test_an_agent_with_credentials_writes_its_mesh_node(machine: Machine) -> None:
    daemon = Daemon("agent", "1.2.3")
    async with running(serve_node(machine.settings(), daemon)):
        await until(lambda: shown(daemon).written)
    found = await machine.mesh_node()
    assert found["spec"] == {"bootID": _BOOT_ID, "addresses": _ADDRESSES}
    assert found["status"]["version"] == "1.2.3"
    assert found["status"]["startedAt"].endswith("Z")
    line = await asyncio.to_thread(machine.kube.kubectl, "get", "meshnodes", machine.name)
    assert _ADDRESSES[0]["address"] in line
    (owner,) = found["metadata"]["ownerReferences"]
    assert owner["kind"] == "Node"
    assert owner["uid"] == machine.node["metadata"]["uid"]


async def test_what_somebody_else_changed_is_put_back_and_else_nothing_is_written(
    machine: Machine,
) -> None:
    async with keeping(machine.settings()) as daemon:
        await until(lambda: shown(daemon).written)
        good = await machine.mesh_node()
        path = f"{_MESH_NODES}/{machine.name}"

        async def is_good() -> bool:
            found = await machine.mesh_node()
            return found is not None and all(
                found.get(part) == good[part] for part in ("spec", "status")
            )

        for change in (
            {"spec": {"bootID": "another", "wireguardPublicKey": ""}},
            {"spec": {"addresses": None}},
        ):
            await machine.call("PATCH", path, change)
            await until(is_good)
        await machine.call("PATCH", f"{path}/status", {"status": {"version": "0"}})
        await until(is_good)
        await machine.call("DELETE", path)
        await until(is_good)


async def test_nothing_is_written_where_nothing_has_changed(machine: Machine) -> None:
    admin = read_kubeconfig((machine.kube.kubeconfig,))
    async with Kube(admin) as kube, keeping(machine.settings()) as daemon:
        await until(lambda: shown(daemon).written)
        before = await _requests(kube)

        async def has_looked() -> bool:
            return (await _requests(kube))["GET"] >= before["GET"] + 3

        await until(has_looked)
        after = await _requests(kube)
    assert {verb for verb in after if after[verb] != before[verb]} == {"GET"}


async def _requests(kube: Kube) -> Counter[str]:
    """How often the API server was asked for MeshNodes, by verb."""
    count: Counter[str] = Counter()
    for line in (await kube.fetch("/metrics")).decode().splitlines():
        if line.startswith("apiserver_request_total{") and 'resource="meshnodes"' in line:
            labels, _, number = line.rpartition(" ")
            count[labels.partition('verb="')[2].partition('"')[0]] += int(number)
    return count


async def test_it_goes_with_its_node(machine: Machine) -> None:
    async with keeping(machine.settings()) as daemon:
        await until(lambda: shown(daemon).written)
    await machine.call("DELETE", f"/api/v1/nodes/{machine.name}")

    async def is_gone() -> bool:
        return await machine.mesh_node() is None

    await until(is_gone, within=_COLLECTED)


async def test_the_token_of_another_node_may_not_write_it(
    machine: Machine, release: Release
) -> None:
    other = f"other-{machine.name}"
    await machine.call("POST", "/api/v1/nodes", {"metadata": {"name": other}})
    try:
        # The API server learns of a new policy after a while; until then it lets us.
        async with keeping(machine.settings(node_name=other)) as daemon:

            async def is_refused() -> bool:
                if await machine.mesh_node(other):
                    await machine.call("DELETE", f"{_MESH_NODES}/{other}")
                return f"may not write the MeshNode {other}" in (shown(daemon).last_error or "")

            await until(is_refused)
            assert not shown(daemon).written
        assert await machine.mesh_node(other) is None
    finally:
        await machine.call("DELETE", f"/api/v1/nodes/{other}")


async def test_what_fails_is_shown_and_tried_again(
    machine: Machine, kube: KubeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Account(kube, "default", "default")
    stranger.write_kubeconfig(machine.kubeconfig)
    async with keeping(machine.settings()) as daemon:
        await until(lambda: "403" in (shown(daemon).last_error or ""))
    assert f"MeshNode {machine.name}: " in caplog.text

    nobody = machine.settings(node_name="nobody", kubeconfig=kube.kubeconfig)
    async with keeping(nobody) as daemon:
        await until(lambda: "is --node-name its name" in (shown(daemon).last_error or ""))
        await machine.call("POST", "/api/v1/nodes", {"metadata": {"name": "nobody"}})
        try:
            await until(lambda: shown(daemon) == MeshNodeStatus(written=True))
        finally:
            await machine.call("DELETE", "/api/v1/nodes/nobody")


async def test_a_kubeconfig_that_is_not_there_is_shown(machine: Machine) -> None:
    missing = machine.settings(kubeconfig=Path("/nowhere/kubeconfig"))
    async with keeping(missing) as daemon:
        await until(lambda: "/nowhere/kubeconfig" in (shown(daemon).last_error or ""))

"""An apiserver of ours in the process of a test, with an etcd of its own, and what it exports."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from apiserver.main import serve_cluster
from apiserver.settings import ApiserverSettings
from clustermesh.daemon import Daemon
from clustermesh.etcd import Etcd
from clustermesh.status import DaemonStatus, SourceStatus
from clustermesh.tests.etcd_server import EtcdServer, running, until

from .cluster import KubeCluster

_CRDS = Path(__file__).parents[2] / "helm" / "crds"


class Replica:
    """A running apiserver."""

    def __init__(self, daemon: Daemon, etcd: Etcd) -> None:
        self._daemon = daemon
        self._etcd = etcd

    @property
    def status(self) -> DaemonStatus:
        """What `/status` says."""
        return msgspec.convert(self._daemon.status(), DaemonStatus)

    @property
    def source(self) -> SourceStatus:
        """What `/status` says of the source."""
        assert self.status.source is not None, "it is an apiserver"
        return self.status.source

    async def ready(self) -> None:
        """Wait until everything is in etcd."""
        await until(lambda: self.status.ready)

    async def exports(self, prefix: str = "cilium/state/") -> dict[str, Any]:
        """What is in etcd below `prefix`: JSON values, or text where it is none."""
        found = {}
        async for page in self._etcd.range(prefix.encode()):
            for row in page.rows:
                text = row.value.decode()
                found[row.key.decode()] = json.loads(text) if text.startswith("{") else text
        return found

    async def names(self, prefix: str = "cilium/state/") -> set[str]:
        """The last parts of the keys below `prefix`."""
        return {key.removeprefix(prefix) for key in await self.exports(prefix)}

    async def births(self) -> dict[str, int]:
        """For every key the revision since when it is there without a break."""
        return {
            row.key.decode(): row.create_revision
            async for page in self._etcd.range(b"c")
            for row in page.rows
        }

    async def revision(self) -> int:
        """Moves with every write to etcd."""
        async for page in self._etcd.range(b"cilium/state/"):
            return page.at.number
        raise AssertionError("there is always a page")


@asynccontextmanager
async def replica(server: EtcdServer, source: str, **settings: Any) -> AsyncIterator[Replica]:
    """Run an apiserver that reads `source`, with `server` as its etcd. Stop it as SIGTERM does."""
    cert, key = server.pair("admin")
    chosen = ApiserverSettings(
        cluster_name="east",
        cluster_id=1,
        source=source,
        etcd_endpoints=(server.url,),
        etcd_ca=server.certs.path("ca", "crt"),
        etcd_cert=cert,
        etcd_key=key,
        **settings,
    )
    daemon = Daemon("apiserver", "test")
    async with Etcd(server.config()) as etcd, running(serve_cluster(chosen, daemon)):
        await until(lambda: "source" in daemon.status())
        yield Replica(daemon, etcd)


def create_crds(cluster: KubeCluster) -> None:
    """Have the API server know MeshNode and MeshIdentity; it may know them already."""
    kind = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for path in sorted(_CRDS.glob("*.yaml")):
        crd: Mapping[str, Any] = yaml.safe_load(path.read_text())
        if not cluster.exists(f"{kind}/{crd['metadata']['name']}"):
            cluster.call("POST", kind, crd)

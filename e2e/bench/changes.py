"""One endpoint that changes in a cluster, until another cluster's kernel knows."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import msgspec

from certs.store import write_atomically
from clustermesh.model import L4Address, Protocol

from .bed import Bed, bed, until
from .maps import ServiceMaps, service_maps
from .measurement import Distribution, Goal, Measurement, Say, Table, percentile

_MEDIAN: Final = 20.0  # milliseconds
_P99: Final = 200.0
_NAME: Final = "changing"
_PORT: Final = 8080

_TEXT: Final = """\
A file with an EndpointSlice is replaced in the directory that cluster1's apiserver watches; the
clock stops when a lookup in the pinned map of a node of cluster2 gives the new backend. Between are
the watched directory, the apiserver's rules, cluster1's etcd, mutual TLS, the agent's rules, the
maps. Changes come at random moments, half a second apart at most.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Change one endpoint to and fro."""
    number = 20 if quick else 400
    moments = random.Random(1)
    milliseconds = []
    with bed("changes") as sandbox:
        frontend = _create(sandbox)
        with service_maps(sandbox.sandbox.bpffs(sandbox.node(2))) as maps:
            for change in range(-2, number):  # the first ones warm up
                taken = _change(sandbox, maps, frontend, change % 2)
                if change >= 0:
                    milliseconds.append(taken * 1000)
                time.sleep(moments.random() / 2)
    median, p99 = percentile(milliseconds, 0.5), percentile(milliseconds, 0.99)
    say(f"{median:.1f} ms, 99 % within {p99:.1f} ms")
    return Measurement(
        title="One endpoint changes",
        text=_TEXT + f"\n{number} changes.",
        goals=[
            Goal("a change of an endpoint, median", median, _MEDIAN, "ms"),
            Goal("a change of an endpoint, p99", p99, _P99, "ms"),
        ],
        tables=[
            Table(
                ["least", "p50", "p90", "p99", "most"],
                [[f"{percentile(milliseconds, s):.1f} ms" for s in (0, 0.5, 0.9, 0.99, 1)]],
            )
        ],
        plots=[
            Distribution(
                "changes",
                "From a file in cluster1 to the map of a node in cluster2",
                "ms",
                {"share of changes": milliseconds},
                goal=_MEDIAN,
            )
        ],
    )


def _create(sandbox: Bed) -> L4Address:
    """Have the service in both clusters; its frontend in cluster2."""
    for cluster in sandbox.sandbox.members:
        ip = cluster.service_cidrs.v4[1024]
        _write(
            sandbox.sandbox.directory / cluster.name / "manifests" / "service.json",
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": _NAME,
                    "namespace": "default",
                    "annotations": {"service.cilium.io/global": "true"},
                },
                "spec": {"clusterIP": str(ip), "ports": [{"name": "http", "port": 80}]},
            },
        )
    return L4Address(ip, 80, Protocol.TCP)


def _change(sandbox: Bed, maps: ServiceMaps, frontend: L4Address, endpoint: int) -> float:
    """The seconds until an endpoint has taken the other one's place."""
    cluster = sandbox.cluster(1)
    ip: IPv4Address = cluster.nodes[0].pod_cidrs.v4[100 + endpoint]
    backend = L4Address(ip, _PORT, Protocol.TCP)
    before = time.monotonic()
    _write(
        sandbox.sandbox.directory / cluster.name / "manifests" / "slice.json",
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": _NAME,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": _NAME},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [str(ip)], "conditions": {"ready": True}}],
            "ports": [{"name": "http", "port": _PORT, "protocol": "TCP"}],
        },
    )
    until(
        lambda: maps.has_only(frontend, backend),
        f"{backend} behind {frontend}",
        timeout=10,
        every=0.0002,
    )
    return time.monotonic() - before


def _write(path: Path, manifest: Mapping[str, Any]) -> None:
    write_atomically({path: (msgspec.json.encode(manifest), 0o644)})

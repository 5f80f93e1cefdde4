"""
Writes a cluster into an API server: namespace, Nodes, Services, EndpointSlices, Pods, and our CRDs.

Every endpoint is a running Pod, with about as much around what we read of it as a Pod has that a
Deployment made. Waits for the API server first. Prints how many objects there are now, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from clustermesh.kube import Kube, KubeError, Resource, read_kubeconfig
from clustermesh.model import ObjectName

from .fill import service_name

_CRDS: Final = Path(__file__).parents[3] / "helm" / "crds"
_PARALLEL: Final = 32  # requests
_START: Final = 60.0  # seconds until the API server answers
_FIRST_NODE: Final = IPv4Address("172.31.4.1")
_POD_CIDRS: Final = IPv4Network("10.128.0.0/12")
_APPS: Final = 500  # sets of labels
_NOISE: Final = {"k8s.v1.cni.cncf.io/network-status": "x" * 600}

_NAMESPACES: Final = Resource("v1", "namespaces")
_ACCOUNTS: Final = Resource("v1", "serviceaccounts")
_NODES: Final = Resource("v1", "nodes")
_PODS: Final = Resource("v1", "pods")
_SERVICES: Final = Resource("v1", "services")
SLICES: Final = Resource("discovery.k8s.io/v1", "endpointslices")
_DEFINITIONS: Final = Resource("apiextensions.k8s.io/v1", "customresourcedefinitions")

ENDPOINTS: Final = 4  # of each service
_NAMESPACE: Final = service_name(0).namespace


class Item(NamedTuple):
    """An object to be made, and what its status then becomes."""

    resource: Resource
    content: Mapping[str, Any]
    status: Mapping[str, Any] | None = None


def main() -> None:
    """Write, and say how much."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--services", type=int, required=True)
    parser.add_argument("--first-frontend", required=True, help="address of the first service")
    json.dump(asyncio.run(_populate(parser.parse_args())), sys.stdout)


async def _populate(options: argparse.Namespace) -> int:
    async with Kube(read_kubeconfig([options.kubeconfig])) as kube:
        await _wait_for(kube)
        needed = list(_needed())
        for item in needed:
            await _create(kube, item)
        items = _cluster(options.nodes, options.services, IPv4Address(options.first_frontend))

        async def work() -> int:
            done = 0
            for item in items:  # which all of us share
                await _create(kube, item)
                done += 1
            return done

        async with asyncio.TaskGroup() as tasks:
            working = [
                tasks.create_task(work(), name=f"writer {number}") for number in range(_PARALLEL)
            ]
        return len(needed) + sum(task.result() for task in working)


async def _wait_for(kube: Kube) -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            await kube.fetch("/readyz")
        except KubeError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def _create(kube: Kube, item: Item) -> None:
    resource, content, status = item
    metadata = content["metadata"]
    namespace = metadata.get("namespace", "")
    await kube.create(resource, content, namespace=namespace)
    if status is not None:
        name = f"{metadata['name']}/status"
        await kube.patch(resource, name, {"status": status}, namespace=namespace)


def _needed() -> Iterator[Item]:
    """What has to be there before the rest."""
    for path in sorted(_CRDS.glob("*.yaml")):
        yield Item(_DEFINITIONS, yaml.safe_load(path.read_text()))
    yield Item(_NAMESPACES, {"metadata": {"name": _NAMESPACE}})
    # Pods cannot be made without it, and no controllers run that would make it.
    yield Item(_ACCOUNTS, {"metadata": {"name": "default", "namespace": _NAMESPACE}})


def _cluster(nodes: int, services: int, frontend: IPv4Address) -> Iterator[Item]:
    cidrs = list(islice(_POD_CIDRS.subnets(new_prefix=24), nodes))
    for number, cidr in enumerate(cidrs):
        yield _node(number, cidr)
    for number in range(services):
        name = service_name(number)
        pods = range(number * ENDPOINTS, (number + 1) * ENDPOINTS)
        addresses = [cidrs[pod % nodes][2 + pod // nodes] for pod in pods]
        for pod, address in zip(pods, addresses, strict=True):
            yield _pod(pod, pod % nodes, address)
        yield _service(name, frontend + number)
        yield _slice(name, addresses)


def _node(number: int, cidr: IPv4Network) -> Item:
    return Item(
        _NODES,
        {
            "metadata": {"name": _node_name(number), "annotations": _NOISE},
            "spec": {"podCIDR": str(cidr), "podCIDRs": [str(cidr)]},
        },
        {"addresses": [{"type": "InternalIP", "address": str(_FIRST_NODE + number)}]},
    )


def _pod(number: int, node: int, address: IPv4Address) -> Item:
    host = str(_FIRST_NODE + node)
    return Item(
        _PODS,
        {
            "metadata": {
                "name": f"pod-{number}",
                "namespace": _NAMESPACE,
                "labels": {"app": f"app-{number % _APPS}", "tier": "backend"},
                "annotations": _NOISE,
            },
            "spec": {
                "nodeName": _node_name(node),
                "containers": [
                    {
                        "name": "main",
                        "image": "registry.example.org/main:1",
                        "ports": [{"name": "http", "containerPort": 8080}],
                    }
                ],
            },
        },
        {
            "phase": "Running",
            "hostIP": host,
            "hostIPs": [{"ip": host}],
            "podIP": str(address),
            "podIPs": [{"ip": str(address)}],
        },
    )


def _service(name: ObjectName, frontend: IPv4Address) -> Item:
    return Item(
        _SERVICES,
        {
            "metadata": {
                "name": name.name,
                "namespace": name.namespace,
                "annotations": {"service.cilium.io/global": "true"},
            },
            "spec": {"clusterIP": str(frontend), "ports": [{"name": "http", "port": 80}]},
        },
    )


def _slice(name: ObjectName, addresses: Sequence[IPv4Address]) -> Item:
    return Item(
        SLICES,
        {
            "metadata": {
                "name": name.name,
                "namespace": name.namespace,
                "labels": {"kubernetes.io/service-name": name.name},
            },
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [str(address)], "conditions": {"ready": True}}
                for address in addresses
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
    )


def _node_name(number: int) -> str:
    return f"machine-{number}"


if __name__ == "__main__":
    main()

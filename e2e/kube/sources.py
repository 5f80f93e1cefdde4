"""The two places where an apiserver can read its cluster, with the same verbs for a test."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from .cluster import KubeCluster

Manifest: TypeAlias = Mapping[str, Any]
Settings: TypeAlias = dict[str, Any]

_CLUSTER_SCOPED: Final = {"Namespace", "Node", "MeshNode", "MeshIdentity"}


class Place(Protocol):
    """A cluster's state, to be written by a test. A manifest has metadata, spec and status."""

    settings: Settings  # how an apiserver is told to read it

    def apply(self, *manifests: Manifest) -> None:
        """Make these objects be as they are written here."""

    def delete(self, *manifests: Manifest) -> None:
        """Remove these objects; with a namespace, all that is in it."""


class Manifests:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.settings: Settings = {"source": f"dir:{directory}"}
        self._directory = directory

    def apply(self, *manifests: Manifest) -> None:
        """See Place."""
        for manifest in manifests:
            path = self._path(manifest)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(manifest))
            new.rename(path)

    def delete(self, *manifests: Manifest) -> None:
        """See Place."""
        for manifest in manifests:
            self._path(manifest).unlink()
            if manifest["kind"] == "Namespace":
                for path in self._directory.glob(f"{manifest['metadata']['name']}.*.json"):
                    path.unlink()

    def _path(self, manifest: Manifest) -> Path:
        metadata = manifest["metadata"]
        name = f"{metadata.get('namespace', '')}.{manifest['kind']}.{metadata['name']}.json"
        return self._directory / name


class Api:
    """An API server. What is written into it goes with `close`."""

    def __init__(self, cluster: KubeCluster) -> None:
        self.settings: Settings = {"source": "kube", "kubeconfig": cluster.kubeconfig}
        self._cluster = cluster
        self._made: dict[str, Manifest] = {}

    def apply(self, *manifests: Manifest) -> None:
        """See Place."""
        for manifest in manifests:
            path = path_of(manifest)
            if self._cluster.exists(path):
                self._cluster.call("PUT", path, self._with_version(path, manifest))
            else:
                self._cluster.call("POST", path.rsplit("/", 1)[0], manifest)
                self._made[path] = manifest
            if "status" in manifest:
                status = self._with_version(path, manifest)
                self._cluster.call("PUT", f"{path}/status", status)

    def delete(self, *manifests: Manifest) -> None:
        """See Place."""
        for manifest in manifests:
            path = path_of(manifest)
            self._made.pop(path, None)
            self._cluster.call("DELETE", f"{path}?gracePeriodSeconds=0")

    def close(self) -> None:
        """Remove what was made."""
        for path, manifest in reversed(list(self._made.items())):
            if self._cluster.exists(path):
                self.delete(manifest)

    def _with_version(self, path: str, manifest: Manifest) -> Manifest:
        """What it has to be to replace what is there."""
        there = self._cluster.call("GET", path)
        new = copy.deepcopy(dict(manifest))
        new["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
        return new


def path_of(manifest: Manifest) -> str:
    """Where the API has an object."""
    version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
    root = "apis" if "/" in version else "api"
    inside = "" if kind in _CLUSTER_SCOPED else f"namespaces/{metadata['namespace']}/"
    plural = "meshidentities" if kind == "MeshIdentity" else f"{kind.lower()}s"
    return f"/{root}/{version}/{inside}{plural}/{metadata['name']}"


def namespace(name: str, **labels: str) -> Manifest:
    """A Namespace, with the label that every one has."""
    labels = {"kubernetes.io/metadata.name": name, **labels}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }


def node(name: str, address: str, *pod_cidrs: str) -> Manifest:
    """A Node."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def pod(namespace: str, name: str, host: str, *addresses: str, **labels: str) -> Manifest:
    """A running Pod on the node whose address is `host`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": "default",
            "containers": [
                {
                    "name": "main",
                    "image": "none",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                }
            ],
        },
        "status": {
            "phase": "Running",
            "hostIP": host,
            "hostIPs": [{"ip": host}],
            "podIP": addresses[0],
            "podIPs": [{"ip": address} for address in addresses],
        },
    }


def service(
    namespace: str, name: str, *cluster_ips: str, ports: Mapping[str, int], **annotations: str
) -> Manifest:
    """A Service; annotations are given without their prefix."""
    families = ["IPv6" if ":" in ip else "IPv4" for ip in cluster_ips]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {f"service.cilium.io/{k}": v for k, v in annotations.items()},
        },
        "spec": {
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ipFamilies": families,
            "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
            "ports": [
                {"port": port, "protocol": "TCP", **({"name": key} if key else {})}
                for key, port in ports.items()
            ],
        },
    }


def endpoints(
    namespace: str,
    service: str,
    *addresses: str | Mapping[str, Any],
    ports: Mapping[str, int],
    name: str = "1",
) -> Manifest:
    """An EndpointSlice of a service. An address may be an endpoint written out."""
    found: list[Mapping[str, Any]] = [
        {"addresses": [one], "conditions": {"ready": True}} if isinstance(one, str) else one
        for one in addresses
    ]
    is_ipv6 = bool(found) and ":" in found[0]["addresses"][0]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-{name}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv6" if is_ipv6 else "IPv4",
        "endpoints": found,
        "ports": [{"name": key, "port": port, "protocol": "TCP"} for key, port in ports.items()],
    }

"""
The Kubernetes side of a sandbox's cluster: what a kubelet and the controllers would have written.

Each cluster has a directory of manifests that its apiserver watches. What a user applies is kept
there object by object, with the ClusterIPs that an API server would have given, and the
EndpointSlices of its Services are written from the pods that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from apiserver.manifests import Loader, parse
from apiserver.objects import KINDS
from certs.store import write_atomically
from clustermesh.errors import UserError

from .model import Cluster, Node, Pod, used

NAMESPACE: Final = "default"
PORTS: Final = (("http", 8080, "TCP"), ("udp", 8080, "UDP"), ("stream", 8081, "TCP"))
"""Name, number and protocol of what the echo server in every pod listens on."""
UDP_PORT: Final = 8080  # the last that it opens

_ENDED: Final = {"exitCode": 0, "reason": "Completed"}

Manifest = dict[str, Any]


class Kubernetes(Protocol):
    """The Kubernetes side of one cluster: a directory of manifests, or an API server."""

    def create(self, is_running: Callable[[Pod], bool]) -> None:
        """Write what the cluster is made of: a namespace, its nodes and pods."""

    def apply(self, file: Path, is_running: Callable[[Pod], bool]) -> list[str]:
        """
        Take over the objects of `file`, and name them.

        Raises:
            UserError: the file cannot be read, or has a mistake in it.
        """

    def delete(self, file: Path, is_running: Callable[[Pod], bool]) -> list[str]:
        """
        Remove the objects that `file` names, and name those that were there.

        Raises:
            UserError: the file cannot be read.
        """

    def update(self, is_running: Callable[[Pod], bool]) -> None:
        """Say which pods are running, as kubelets do."""


class Manifests:
    """The manifests of one cluster, in a directory: a Kubernetes without an API server."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self._directory = directory
        self._applied = directory / "applied"
        self._cluster = cluster

    def create(self, is_running: Callable[[Pod], bool]) -> None:
        """See Kubernetes."""
        self._applied.mkdir(parents=True, exist_ok=True)
        namespace = _object("v1", "Namespace", NAMESPACE, "")
        versions = self._cluster.versions
        nodes = [node_object(node, versions) for node in self._cluster.nodes]
        self._write("cluster.yaml", [namespace, *nodes])
        self.update(is_running)

    def apply(self, file: Path, is_running: Callable[[Pod], bool]) -> list[str]:
        """
        Take over the objects of `file`, and name them.

        Raises:
            UserError: the file cannot be read, or has a mistake in it; then nothing is taken over.
        """
        objects = read_manifests(file)
        for item in objects:
            if item["kind"] == "Service":
                self._give_addresses(item)
            self._write(f"applied/{_file_name(item)}", [item])
        self.update(is_running)
        return [_name(item) for item in objects]

    def delete(self, file: Path, is_running: Callable[[Pod], bool]) -> list[str]:
        """
        Remove the objects that `file` names, and name those that were there.

        Raises:
            UserError: the file cannot be read.
        """
        gone = []
        for item in read_manifests(file):
            path = self._applied / _file_name(item)
            if path.exists():
                path.unlink()
                gone.append(_name(item))
        self.update(is_running)
        return gone

    def update(self, is_running: Callable[[Pod], bool]) -> None:
        """Say which pods are running, and which of them answer each Service."""
        pods = [pod for node in self._cluster.nodes for pod in node.pods]
        running = {pod.place: is_running(pod) for pod in pods}
        nodes = {node.name: node for node in self._cluster.nodes}
        versions = self._cluster.versions
        documents = [
            pod_object(pod, nodes[pod.node], versions, ready=running[pod.place]) for pod in pods
        ]
        self._write("pods.yaml", documents)
        written = [i for f in sorted(self._applied.glob("*.yaml")) for i in read_manifests(f)]
        own = {_service_of(item) for item in written if item["kind"] == "EndpointSlice"}
        services = [item for item in written if item["kind"] == "Service" and _key(item) not in own]
        slices = [s for item in services for s in _slices(item, pods, running, versions)]
        self._write("endpointslices.yaml", slices)

    def _give_addresses(self, service: Manifest) -> None:
        """Do as an API server: a ClusterIP of each family, kept when it is applied again."""
        spec = service.setdefault("spec", {})
        if "clusterIP" in spec or "clusterIPs" in spec or spec.get("type") == "ExternalName":
            return
        path = self._applied / _file_name(service)
        taken: set[str] = set()
        for other in self._applied.glob("*.yaml"):
            for item in read_manifests(other):
                ips = item.get("spec", {}).get("clusterIPs", ())
                if other == path:
                    spec["clusterIPs"] = ips
                taken.update(ips)
        if not spec.get("clusterIPs"):
            networks = self._cluster.used(self._cluster.service_cidrs)
            hosts = (network.hosts() for network in networks)
            spec["clusterIPs"] = [
                next(str(ip) for ip in addresses if str(ip) not in taken) for addresses in hosts
            ]
        spec["clusterIP"] = spec["clusterIPs"][0]

    def _write(self, name: str, documents: Iterable[Manifest]) -> None:
        text = yaml.safe_dump_all(documents, sort_keys=False).encode()
        path = self._directory / name
        if not path.exists() or path.read_bytes() != text:
            write_atomically({path: (text, 0o644)})


def read_manifests(file: Path) -> list[Manifest]:
    """
    The objects of a file, after the apiserver's own reader has found nothing wrong with them.

    Raises:
        UserError: it names the file, the document and the field.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for problem in parse(text, str(file)).problems:
        raise UserError(f"{problem.where}: {problem.error}", hint="nothing was changed")
    objects: list[Manifest] = []
    for document in yaml.load_all(text, Loader=Loader):
        if document is not None:
            objects += document.get("items", ()) if document["kind"] == "List" else [document]
    for item in objects:
        if (item["apiVersion"], item["kind"]) not in KINDS:
            known = ", ".join(sorted(kind for _, kind in KINDS))
            raise UserError(f"{file}: a sandbox has no {item['kind']}", hint=f"it has {known}")
    return objects


def node_object(node: Node, versions: Sequence[int]) -> Manifest:
    """A Node, as its kubelet says it is."""
    return {
        **_object("v1", "Node", node.name, ""),
        "spec": {"podCIDRs": [str(cidr) for cidr in used(node.pod_cidrs, versions)]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": str(ip)} for ip in used(node.addresses, versions)
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod_key(pod: Pod) -> tuple[str, str]:
    """The namespace and name of a Pod."""
    return NAMESPACE, f"{pod.node}-{pod.name}"


def pod_object(pod: Pod, node: Node, versions: Sequence[int], *, ready: bool) -> Manifest:
    """A Pod, as the kubelet of its node says it is."""
    namespace, name = pod_key(pod)
    made = _object("v1", "Pod", name, namespace)
    made["metadata"]["labels"] = {"app": "echo", "node": pod.node}
    ports = [{"name": n, "containerPort": p, "protocol": proto} for n, p, proto in PORTS]
    made["spec"] = {
        "nodeName": pod.node,
        "serviceAccountName": "default",
        "containers": [{"name": "echo", "image": "echo", "ports": ports}],
    }
    ips = [str(ip) for ip in used(pod.addresses, versions)]
    made["status"] = {
        "phase": "Running",
        "hostIP": str(used(node.addresses, versions)[0]),
        "podIP": ips[0],
        "podIPs": [{"ip": ip} for ip in ips],
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [
            {
                "name": "echo",
                "image": "echo",
                "imageID": "",
                "ready": ready,
                "restartCount": 0,
                "state": {"running": {}} if ready else {"terminated": _ENDED},
            }
        ],
    }
    return made


def _slices(
    service: Manifest,
    pods: Iterable[Pod],
    running: Mapping[str, bool],
    versions: Sequence[int],
) -> Iterator[Manifest]:
    """As the EndpointSlice controller: one for each family, none without a selector."""
    selector = service["spec"].get("selector")
    if not selector or service["metadata"]["namespace"] != NAMESPACE:
        return
    chosen = [p for p in pods if selector.items() <= {"app": "echo", "node": p.node}.items()]
    ports = [made for port in service["spec"].get("ports", ()) if (made := _slice_port(port))]
    for version in versions:
        addresses = [(p, p.addresses.v4 if version == 4 else p.addresses.v6) for p in chosen]
        name = service["metadata"]["name"]
        piece = _object("discovery.k8s.io/v1", "EndpointSlice", f"{name}-ipv{version}", NAMESPACE)
        piece["metadata"]["labels"] = {"kubernetes.io/service-name": name}
        piece["addressType"] = f"IPv{version}"
        piece["endpoints"] = [
            {
                "addresses": [str(ip_address(ip))],
                "conditions": {"ready": running[pod.place]},
                "nodeName": pod.node,
            }
            for pod, ip in addresses
        ]
        piece["ports"] = ports
        yield piece


def _slice_port(port: Manifest) -> Manifest | None:
    """None for a target port that the pods have no name for: then nothing answers it."""
    target: Any = port.get("targetPort", port["port"])
    numbers: dict[Any, int] = {name: number for name, number, _ in PORTS}
    number = target if isinstance(target, int) else numbers.get(target)
    if number is None:
        return None
    return {
        "name": port.get("name", ""),
        "port": number,
        "protocol": port.get("protocol", "TCP"),
    }


def _object(version: str, kind: str, name: str, namespace: str) -> Manifest:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _service_of(piece: Manifest) -> tuple[str, str]:
    labels = piece["metadata"].get("labels", {})
    return _key(piece)[0], labels.get("kubernetes.io/service-name", "")


def _file_name(item: Manifest) -> str:
    namespace, name = _key(item)
    return f"{item['kind'].lower()}.{namespace}.{name}.yaml"


def _name(item: Manifest) -> str:
    return f"{item['kind'].lower()}/{'/'.join(filter(None, _key(item)))}"

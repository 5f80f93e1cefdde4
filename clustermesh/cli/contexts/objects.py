"""The objects of an API server that say what a cluster is: what is read of them, and how."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from clustermesh.kube import Kube, NotFoundError, Resource

T = TypeVar("T")

SECRETS: Final = Resource("v1", "secrets")
CONFIG_MAPS: Final = Resource("v1", "configmaps")
SERVICES: Final = Resource("v1", "services")
PODS: Final = Resource("v1", "pods")
NODES: Final = Resource("v1", "nodes")
DEPLOYMENTS: Final = Resource("apps/v1", "deployments")
DAEMON_SETS: Final = Resource("apps/v1", "daemonsets")
SERVICE_CIDRS: Final = Resource("networking.k8s.io/v1", "servicecidrs")

# STABLE API: the names and labels that the chart gives.
APISERVER: Final = "clustermesh-apiserver"
AGENT: Final = "clustermesh-agent"
CLUSTERS: Final = "clustermesh-clusters"
BUNDLE: Final = "clustermesh-ca-bundle"
SERVER_CERT: Final = "clustermesh-apiserver-server-cert"
REMOTE_CERT: Final = "clustermesh-apiserver-remote-cert"
BUNDLE_READ: Final = "clustermesh.io/ca-bundle"
"""Annotation of the apiserver's pods: the hash of the bundle that they were started with."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OURS: Final = "clustermesh"
_LABELS: Final = "app.kubernetes.io/name=clustermesh,app.kubernetes.io/component="


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Of any object."""

    name: str = ""
    namespace: str = ""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}


class Data(msgspec.Struct, frozen=True):
    """A ConfigMap, or a Secret, whose values are base64."""

    metadata: Metadata = Metadata()
    data: Mapping[str, str] = {}

    def decoded(self) -> dict[str, bytes]:
        """What a Secret holds."""
        return {key: base64.b64decode(text) for key, text in self.data.items()}


class _Source(msgspec.Struct, frozen=True, rename="camel"):
    config_map: Metadata | None = None


class _Projected(msgspec.Struct, frozen=True):
    sources: list[_Source] = []


class _Volume(msgspec.Struct, frozen=True):
    projected: _Projected = _Projected()


class _PodSpec(msgspec.Struct, frozen=True):
    volumes: list[_Volume] = []


class _Template(msgspec.Struct, frozen=True):
    metadata: Metadata = Metadata()
    spec: _PodSpec = _PodSpec()


class _WorkloadSpec(msgspec.Struct, frozen=True):
    replicas: int = 1
    template: _Template = _Template()


class _WorkloadStatus(msgspec.Struct, frozen=True, rename="camel"):
    desired_number_scheduled: int = 0


class Workload(msgspec.Struct, frozen=True):
    """A Deployment or a DaemonSet."""

    metadata: Metadata = Metadata()
    spec: _WorkloadSpec = _WorkloadSpec()
    status: _WorkloadStatus = _WorkloadStatus()


class _ServicePort(msgspec.Struct, frozen=True, rename="camel"):
    port: int = 0
    node_port: int = 0


class _ServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    type: str = ""
    cluster_ips: list[str] = msgspec.field(name="clusterIPs", default_factory=list)
    ports: list[_ServicePort] = []


class _Ingress(msgspec.Struct, frozen=True):
    ip: str = ""
    hostname: str = ""


class _LoadBalancer(msgspec.Struct, frozen=True):
    ingress: list[_Ingress] = []


class _ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    load_balancer: _LoadBalancer = _LoadBalancer()


class Service(msgspec.Struct, frozen=True):
    """How the etcd of a cluster is reached."""

    spec: _ServiceSpec = _ServiceSpec()
    status: _ServiceStatus = _ServiceStatus()


class _Address(msgspec.Struct, frozen=True):
    type: str
    address: str


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _NodeSpec(msgspec.Struct, frozen=True):
    pod_cidrs: list[str] = msgspec.field(name="podCIDRs", default_factory=list)


class _NodeStatus(msgspec.Struct, frozen=True):
    addresses: list[_Address] = []
    conditions: list[_Condition] = []


class Node(msgspec.Struct, frozen=True):
    """A node."""

    metadata: Metadata = Metadata()
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()


class _ServiceCidrSpec(msgspec.Struct, frozen=True):
    cidrs: list[str] = []


class ServiceCidr(msgspec.Struct, frozen=True):
    """Where ClusterIPs come from."""

    spec: _ServiceCidrSpec = _ServiceCidrSpec()


class Settings(msgspec.Struct, frozen=True, rename="kebab"):
    """What one needs to know of the daemons' settings."""

    cluster_name: str
    cluster_id: int
    max_connected_clusters: int = 255
    routing: str = "tunnel"
    cluster_routing: str = ""  # west=direct,north=native
    encryption: str = "none"
    tunnel_protocol: str = "vxlan"
    tunnel_port: int = 0


class _List(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw] | None = None


def selector(component: str) -> str:
    """The labels of a component's objects and pods: apiserver, agent."""
    return _LABELS + component


async def items(
    kube: Kube, resource: Resource, type_: type[T], *, namespace: str = "", labels: str = ""
) -> list[T]:
    """The objects of a kind that have these labels, in a namespace or everywhere."""
    query = {"labelSelector": labels} if labels else {}
    text = await kube.fetch(resource.path(namespace=namespace), **query)
    found = msgspec.json.decode(text, type=_List).items or []
    return [msgspec.json.decode(item, type=type_) for item in found]


async def read_data(kube: Kube, resource: Resource, name: str, namespace: str) -> Data:
    """A ConfigMap or Secret; an empty one when there is none."""
    try:
        return await kube.get(resource, name, Data, namespace=namespace)
    except NotFoundError:
        return Data()

"""
The Kubernetes objects that a cluster's state is read from: only the fields that matter to us.

The names are those of the Kubernetes API (core/v1, discovery.k8s.io/v1) and of our own resources
(clustermesh.io/v1alpha1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

from clustermesh.model import ObjectName


class Metadata(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What every object has. Annotations can be long, and only those of Services are read."""

    name: str
    namespace: str = ""
    uid: str = ""
    labels: Mapping[str, str] = {}


class Object(msgspec.Struct, frozen=True, gc=False):
    """An object of any kind."""

    metadata: Metadata

    @property
    def key(self) -> ObjectName:
        """Its namespace (empty for what has none) and name."""
        return ObjectName(self.metadata.namespace, self.metadata.name)


class Namespace(Object, frozen=True, gc=False):
    """Its labels belong to the identity of each of its pods."""


class NodeSpec(msgspec.Struct, frozen=True, gc=False):
    """Where the pods of a node are."""

    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    pod_cidr: str = msgspec.field(name="podCIDR", default="")


class NodeAddress(msgspec.Struct, frozen=True, gc=False):
    """An address of a node, such as its InternalIP."""

    type: str
    address: str


class NodeInfo(msgspec.Struct, frozen=True, gc=False):
    """What the kubelet says of the machine."""

    boot_id: str = msgspec.field(name="bootID", default="")


class NodeStatus(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What the kubelet says of a node."""

    addresses: tuple[NodeAddress, ...] = ()
    node_info: NodeInfo = NodeInfo()


# STABLE API: what users annotate their Nodes with.
EXTERNAL_ADDRESS: Final = "clustermesh.io/external-address"


class NodeAnnotations(msgspec.Struct, frozen=True, gc=False):
    """The one annotation of a Node that is read."""

    external_address: str = msgspec.field(name=EXTERNAL_ADDRESS, default="")


class NodeMetadata(Metadata, frozen=True, gc=False, rename="camel"):
    """Says also where a node is reached from outside of its network."""

    annotations: NodeAnnotations = NodeAnnotations()


class Node(Object, frozen=True, gc=False):
    """A machine with pods."""

    metadata: NodeMetadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class MeshNodeSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What only the agent knows of its node."""

    wireguard_public_key: str = ""
    boot_id: str = msgspec.field(name="bootID", default="")
    health_ips: tuple[str, ...] = msgspec.field(name="healthIPs", default=())


class MeshNode(Object, frozen=True, gc=False):
    """Ours: named as the Node that it tells more about."""

    spec: MeshNodeSpec = MeshNodeSpec()


class ContainerPort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A port of a container; only named ones count."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(msgspec.Struct, frozen=True, gc=False):
    """A container of a pod."""

    ports: tuple[ContainerPort, ...] = ()


class PodSpec(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What a pod was asked to be."""

    node_name: str = ""
    host_network: bool = False
    service_account_name: str = "default"
    containers: tuple[Container, ...] = ()


class PodIP(msgspec.Struct, frozen=True, gc=False):
    """An address of a pod."""

    ip: str


class PodStatus(msgspec.Struct, frozen=True, gc=False):
    """What has become of a pod."""

    phase: str = ""
    host_ip: str = msgspec.field(name="hostIP", default="")
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] = msgspec.field(name="podIPs", default=())


class Pod(Object, frozen=True, gc=False):
    """Has addresses, and labels that make up its identity."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A port of a service; backends are found by its name."""

    port: int
    name: str = ""
    protocol: str = "TCP"


class ServiceSpec(msgspec.Struct, frozen=True, gc=False):
    """Where a service answers."""

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: tuple[str, ...] = msgspec.field(name="clusterIPs", default=())
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] | None = None


class ServiceMetadata(Metadata, frozen=True, gc=False, rename="camel"):
    """Annotations say whether, and how, a service is global."""

    annotations: Mapping[str, str] = {}


class Service(Object, frozen=True, gc=False):
    """A name for a set of pods."""

    metadata: ServiceMetadata
    spec: ServiceSpec = ServiceSpec()


class EndpointPort(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A port that all endpoints of a slice have. Without a number it means any port."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class Conditions(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Whether an endpoint can be used; nothing said means yes."""

    ready: bool | None = None


class ForZone(msgspec.Struct, frozen=True, gc=False):
    """A zone that should use an endpoint."""

    name: str


class Hints(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Who should use an endpoint."""

    for_zones: tuple[ForZone, ...] | None = None


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """An endpoint, all of whose addresses are the same pod."""

    addresses: tuple[str, ...]
    conditions: Conditions = Conditions()
    hostname: str | None = None
    zone: str | None = None
    hints: Hints | None = None


class EndpointSlice(Object, frozen=True, gc=False, rename="camel"):
    """Some of the endpoints of the service that its label names."""

    address_type: str = ""
    endpoints: tuple[SliceEndpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()

    @property
    def service(self) -> ObjectName | None:
        """The service that it belongs to."""
        name = self.metadata.labels.get("kubernetes.io/service-name")
        return ObjectName(self.metadata.namespace, name) if name else None


AnyObject: TypeAlias = Namespace | Node | MeshNode | Pod | Service | EndpointSlice

KINDS: Final[Mapping[tuple[str, str], type[AnyObject]]] = {
    ("v1", "Namespace"): Namespace,
    ("v1", "Node"): Node,
    ("v1", "Pod"): Pod,
    ("v1", "Service"): Service,
    ("discovery.k8s.io/v1", "EndpointSlice"): EndpointSlice,
    ("clustermesh.io/v1alpha1", "MeshNode"): MeshNode,
}
"""By apiVersion and kind."""

CLUSTER_SCOPED: Final = (Namespace, Node, MeshNode)

"""
What is in etcd: every key and every JSON name, and how it becomes a row of `model.py` and back.

# STABLE API: this is the schema of Cilium Cluster Mesh (1.14 and later), and clusters of any
# version read each other with it. All string constants and wire field names in here are fixed.

Peers are not trusted. A row is decoded *for an owner*, the cluster whose etcd it came from, and
one that claims to be another cluster's, or that names an address or identity that no cluster can
own, raises BadRowError. What can only be judged by looking at several rows, such as overlapping
CIDRs, is left to the agent's rules.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import field

from .errors import BadRowError
from .model import (
    Affinity,
    ClusterConfig,
    ClusterId,
    ClusterName,
    Endpoint,
    Identity,
    IdentityId,
    IPAddress,
    IPNetwork,
    Node,
    ObjectName,
    Port,
    PortsByAddress,
    Protocol,
    Service,
    identity_range,
)

K = TypeVar("K")
V = TypeVar("V")

HEARTBEAT: Final = "cilium/.heartbeat"
HEARTBEAT_EVERY: Final = 60.0  # seconds
HEARTBEAT_LOST: Final = 120.0  # seconds without one after which a connection has failed
CLUSTER_CONFIGS: Final = "cilium/cluster-config/"
SYNCED: Final = "cilium/synced/"
LOCAL: Final = "clustermesh/local/"
RESERVED_IDENTITIES: Final = range(1, 256)

CLUSTER_LABEL: Final = "io.cilium.k8s.policy.cluster"
NAMESPACE_LABEL: Final = "io.kubernetes.pod.namespace"
SERVICE_ACCOUNT_LABEL: Final = "io.cilium.k8s.policy.serviceaccount"
NAMESPACE_LABELS_PREFIX: Final = "io.cilium.k8s.namespace.labels."


class Owner(msgspec.Struct, frozen=True):
    """The cluster that rows are read from, and what it may speak for."""

    cluster: ClusterName
    id: ClusterId
    max_connected_clusters: int

    @property
    def identities(self) -> range:
        """The numeric identities that this cluster may hand out."""
        return identity_range(self.id, self.max_connected_clusters)


@dataclass(frozen=True)
class Kind(Generic[K, V]):
    """
    One kind of row in etcd.

    `key` and `parse_key` turn the row's key into the part of the etcd key after the prefix and
    back; `encode` and `decode` do the same for the value. `decode` and `parse_key` raise
    BadRowError.
    """

    name: str
    state: str  # the prefix in the etcd of the cluster itself, with {cluster} where it has one
    cache: str  # the prefix of a copy in another cluster's etcd (kvstoremesh)
    key: Callable[[K], str]
    parse_key: Callable[[str], K]
    encode: Callable[[V], bytes]
    decode: Callable[[Owner, K, bytes], V]

    def prefix(self, cluster: ClusterName, *, cached: bool = False) -> str:
        """Where the rows of `cluster` are, with a trailing slash: `cluster1` is not `cluster10`."""
        return (self.cache if cached else self.state).format(cluster=cluster)

    def canary(self, cluster: ClusterName, *, cached: bool = False) -> str:
        """The key that says that the first listing of `cluster` is in."""
        prefix = self.prefix(cluster, cached=cached)
        return f"{SYNCED}{cluster}/{prefix[: prefix.index('/v1/') + 3]}"


def cluster_config_key(cluster: ClusterName) -> str:
    """Where a cluster introduces itself."""
    return f"{CLUSTER_CONFIGS}{cluster}"


# --- cluster-config ------------------------------------------------------------------------------


class _Capabilities(msgspec.Struct, rename="camel", omit_defaults=True):
    synced_canaries: bool = False
    max_connected_clusters: int = 255
    service_exports_enabled: bool | None = None
    cached: bool = False


class _ClusterConfig(msgspec.Struct, rename="camel"):
    id: int = 0
    capabilities: _Capabilities = field(default_factory=_Capabilities)


def encode_cluster_config(config: ClusterConfig) -> bytes:
    """The JSON of `cilium/cluster-config/<cluster>`."""
    capabilities: dict[str, Any] = {
        "syncedCanaries": config.synced_canaries,
        "maxConnectedClusters": config.max_connected_clusters,
        "serviceExportsEnabled": config.service_exports_enabled,
    }
    if config.cached:
        capabilities["cached"] = True
    return msgspec.json.encode({"id": config.id, "capabilities": capabilities})


def decode_cluster_config(value: bytes) -> ClusterConfig:
    """
    Read a cluster-config.

    Raises:
        BadRowError: it is no cluster-config, or its id is no cluster id.
    """
    wire = _decode_json(_CLUSTER_CONFIG, value)
    capabilities = wire.capabilities
    if capabilities.max_connected_clusters not in {255, 511}:
        raise BadRowError(
            f"maxConnectedClusters is {capabilities.max_connected_clusters}, not 255 or 511"
        )
    if not 1 <= wire.id <= capabilities.max_connected_clusters:
        raise BadRowError(f"cluster id {wire.id} is not in 1-{capabilities.max_connected_clusters}")
    return ClusterConfig(
        ClusterId(wire.id),
        capabilities.max_connected_clusters,
        capabilities.synced_canaries,
        bool(capabilities.service_exports_enabled),
        capabilities.cached,
    )


# --- nodes ---------------------------------------------------------------------------------------


class _Address(msgspec.Struct, rename="pascal"):
    type: str
    ip: str = field(name="IP")


class _Cidr(msgspec.Struct):
    ip: str = field(name="IP")
    mask: str = field(name="Mask")  # base64 of the mask's bytes


class _Node(msgspec.Struct, rename="pascal"):
    name: str
    cluster: str
    ip_addresses: list[_Address] | None = field(name="IPAddresses", default=None)
    ipv4_alloc_cidr: _Cidr | None = field(name="IPv4AllocCIDR", default=None)
    ipv4_secondary_alloc_cidrs: list[_Cidr] | None = field(
        name="IPv4SecondaryAllocCIDRs", default=None
    )
    ipv6_alloc_cidr: _Cidr | None = field(name="IPv6AllocCIDR", default=None)
    ipv6_secondary_alloc_cidrs: list[_Cidr] | None = field(
        name="IPv6SecondaryAllocCIDRs", default=None
    )
    ipv4_health_ip: str | None = field(name="IPv4HealthIP", default="")
    ipv6_health_ip: str | None = field(name="IPv6HealthIP", default="")
    ipv4_ingress_ip: str | None = field(name="IPv4IngressIP", default="")
    ipv6_ingress_ip: str | None = field(name="IPv6IngressIP", default="")
    cluster_id: int = field(name="ClusterID", default=0)
    source: str = "custom-resource"
    encryption_key: int = 0
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    wireguard_pub_key: str = ""
    boot_id: str = field(name="BootID", default="")


def _encode_node(node: Node) -> bytes:
    v4 = [_wire_cidr(c) for c in node.pod_cidrs if c.version == 4]
    v6 = [_wire_cidr(c) for c in node.pod_cidrs if c.version == 6]
    return msgspec.json.encode(
        _Node(
            name=node.name,
            cluster=node.cluster,
            cluster_id=node.cluster_id,
            ip_addresses=[_Address(kind, str(ip)) for kind, ip in node.addresses],
            ipv4_alloc_cidr=v4[0] if v4 else None,
            ipv4_secondary_alloc_cidrs=v4[1:] or None,
            ipv6_alloc_cidr=v6[0] if v6 else None,
            ipv6_secondary_alloc_cidrs=v6[1:] or None,
            labels=dict(sorted(node.labels.items())),
            wireguard_pub_key=node.wireguard_public_key,
            boot_id=node.boot_id,
        )
    )


def _decode_node(owner: Owner, name: str, value: bytes) -> Node:
    wire = _decode_json(_NODE, value)
    _check("Name", wire.name, name)
    _check("Cluster", wire.cluster, owner.cluster)
    _check("ClusterID", wire.cluster_id, owner.id)
    cidrs = (
        wire.ipv4_alloc_cidr,
        *(wire.ipv4_secondary_alloc_cidrs or ()),
        wire.ipv6_alloc_cidr,
        *(wire.ipv6_secondary_alloc_cidrs or ()),
    )
    return Node(
        cluster=owner.cluster,
        cluster_id=owner.id,
        name=name,
        addresses=tuple((a.type, _unicast(a.ip)) for a in wire.ip_addresses or ()),
        pod_cidrs=tuple(_pod_cidr(c) for c in cidrs if c),
        labels=wire.labels or {},
        wireguard_public_key=wire.wireguard_pub_key,
        boot_id=wire.boot_id,
    )


def _wire_cidr(cidr: IPNetwork) -> _Cidr:
    return _Cidr(str(cidr.network_address), base64.b64encode(cidr.netmask.packed).decode())


def _pod_cidr(wire: _Cidr) -> IPNetwork:
    try:
        mask = base64.b64decode(wire.mask, validate=True)
        bits = int.from_bytes(mask)
        length = bits.bit_count()
        address = ip_address(wire.ip)
        if len(mask) != len(address.packed) or bits != ((1 << length) - 1) << (
            8 * len(mask) - length
        ):
            raise ValueError("its mask does not fit")
        cidr = ip_network((address, length))
    except (ValueError, binascii.Error) as error:
        raise BadRowError(f"pod CIDR {wire.ip} with mask {wire.mask}: {error}") from None
    return check_pod_cidr(cidr)


def check_pod_cidr(cidr: IPNetwork) -> IPNetwork:
    """
    `cidr`, if pods can have such addresses.

    Raises:
        BadRowError: it is so large, or of such a kind, that routing it would take a node down.
    """
    shortest = 8 if cidr.version == 4 else 16
    if cidr.prefixlen < shortest:
        raise BadRowError(f"pod CIDR {cidr} is larger than a /{shortest}")
    for special, what in _SPECIAL:
        if cidr.version == special.version and cidr.overlaps(special):
            raise BadRowError(f"pod CIDR {cidr} has {what} addresses")
    return cidr


# --- services ------------------------------------------------------------------------------------


class _Port(msgspec.Struct, rename="pascal"):
    protocol: str
    port: int


class _ZoneName(msgspec.Struct):
    name: str


class _Zone(msgspec.Struct, rename="camel", omit_defaults=True):
    zone: str = ""
    for_zones: list[_ZoneName] | None = None


_WirePorts = dict[str, dict[str, _Port] | None]


class _Service(msgspec.Struct, rename="camel"):
    cluster: str
    namespace: str
    name: str
    frontends: _WirePorts | None
    backends: _WirePorts | None
    hostnames: dict[str, str] | msgspec.UnsetType | None = msgspec.UNSET
    zones: dict[str, _Zone] | msgspec.UnsetType | None = msgspec.UNSET
    labels: dict[str, str] | None = None
    selector: dict[str, str] | None = None
    include_external: bool = False
    shared: bool = False
    cluster_id: int = field(name="clusterID", default=0)
    affinity: Affinity | msgspec.UnsetType = msgspec.UNSET  # in clustermesh/local/ only


def _wire_service(service: Service) -> _Service:
    return _Service(
        cluster=service.cluster,
        namespace=service.name.namespace,
        name=service.name.name,
        frontends=_wire_ports(service.frontends),
        backends=_wire_ports(service.backends),
        hostnames={str(ip): name for ip, name in _sorted(service.hostnames)} or msgspec.UNSET,
        zones={
            str(ip): _Zone(zone.zone, [_ZoneName(n) for n in zone.for_zones] or None)
            for ip, zone in _sorted(service.zones)
        }
        or msgspec.UNSET,
        labels=dict(sorted(service.labels.items())),
        selector=dict(sorted(service.selector.items())),
        include_external=service.include_external,
        shared=service.shared,
        cluster_id=service.cluster_id,
    )


def _encode_service(service: Service) -> bytes:
    return msgspec.json.encode(_wire_service(service))


def _encode_local_service(service: Service) -> bytes:
    wire = _wire_service(service)
    wire.affinity = service.affinity
    return msgspec.json.encode(wire)


def _decode_service(owner: Owner, name: ObjectName, value: bytes) -> Service:
    """Frontends are never imported from another cluster, so they are not even kept."""
    wire = _checked_service(owner, name, value)
    if not wire.shared:
        raise BadRowError("it is not shared, and should not be here")
    return Service(
        cluster=owner.cluster,
        cluster_id=owner.id,
        name=name,
        frontends={},
        backends=_ports_by_address(wire.backends or {}),
        shared=True,
    )


def _decode_local_service(owner: Owner, name: ObjectName, value: bytes) -> Service:
    wire = _checked_service(owner, name, value)
    return Service(
        cluster=owner.cluster,
        cluster_id=owner.id,
        name=name,
        frontends=_ports_by_address(wire.frontends or {}),
        backends=_ports_by_address(wire.backends or {}),
        labels=wire.labels or {},
        selector=wire.selector or {},
        shared=wire.shared,
        affinity=Affinity.NONE if wire.affinity is msgspec.UNSET else wire.affinity,
    )


def _checked_service(owner: Owner, name: ObjectName, value: bytes) -> _Service:
    wire = _decode_json(_SERVICE, value)
    _check("namespace", wire.namespace, name.namespace)
    _check("name", wire.name, name.name)
    _check("cluster", wire.cluster, owner.cluster)
    _check("clusterID", wire.cluster_id, owner.id)
    return wire


def _wire_ports(addresses: PortsByAddress) -> _WirePorts:
    return {
        str(ip): {name: _Port(p.protocol, p.port) for name, p in sorted(ports.items())}
        for ip, ports in _sorted(addresses)
    }


def _ports_by_address(wire: _WirePorts) -> PortsByAddress:
    return {
        _unicast(ip): _ports(tuple((n, p.protocol, p.port) for n, p in (ports or {}).items()))
        for ip, ports in wire.items()
    }


@lru_cache(4096)
def _ports(wire: tuple[tuple[str, str, int], ...]) -> Mapping[str, Port]:
    """Shared between backends: those of a cluster have few different sets of ports."""
    for name, protocol, port in wire:
        if protocol not in Protocol.__members__:
            raise BadRowError(f"port {name!r} has protocol {protocol!r}")
        if not 1 <= port <= 65535:
            raise BadRowError(f"port {name!r} is {port}")
    return {name: Port(Protocol(protocol), port) for name, protocol, port in wire}


# --- identities ----------------------------------------------------------------------------------


def _encode_identity(identity: Identity) -> bytes:
    return "".join(f"{source}:{key}={value};" for source, key, value in identity.labels).encode()


def _decode_identity(owner: Owner, number: IdentityId, value: bytes) -> Identity:
    if number not in owner.identities:
        raise BadRowError(
            f"identity {number} is not in {owner.identities[0]}-{owner.identities[-1]}, "
            f"the range of cluster id {owner.id}"
        )
    labels = []
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise BadRowError("its labels are no UTF-8") from None
    for label in text.removesuffix(";").split(";"):
        source, colon, rest = label.partition(":")
        key, equals, content = rest.partition("=")
        if not (colon and equals):
            raise BadRowError(f"label {label!r} is not source:key=value")
        labels.append((source, key, content))
    if ("k8s", CLUSTER_LABEL, owner.cluster) not in labels:
        raise BadRowError(f"it has no label k8s:{CLUSTER_LABEL}={owner.cluster}")
    return Identity(number, tuple(sorted(labels)))


# --- endpoints -----------------------------------------------------------------------------------


class _NamedPort(msgspec.Struct, rename="pascal"):
    name: str
    port: int
    protocol: str


class _Endpoint(msgspec.Struct, rename="pascal"):
    ip: str = field(name="IP")
    host_ip: str | None = field(name="HostIP", default=None)
    id: int = field(name="ID", default=0)
    key: int = 0
    metadata: str = ""
    namespace: str | msgspec.UnsetType = field(name="K8sNamespace", default=msgspec.UNSET)
    pod: str | msgspec.UnsetType = field(name="K8sPodName", default=msgspec.UNSET)
    uid: str | msgspec.UnsetType = field(name="K8sPodUID", default=msgspec.UNSET)
    service_account: str | msgspec.UnsetType = field(
        name="K8sServiceAccount", default=msgspec.UNSET
    )
    named_ports: list[_NamedPort] | msgspec.UnsetType | None = msgspec.UNSET


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    unset = msgspec.UNSET
    return msgspec.json.encode(
        _Endpoint(
            ip=str(endpoint.ip),
            host_ip=str(endpoint.node_ip) if endpoint.node_ip else None,
            id=endpoint.identity,
            namespace=endpoint.pod.namespace or unset,
            pod=endpoint.pod.name or unset,
            uid=endpoint.uid or unset,
            service_account=endpoint.service_account or unset,
            named_ports=[_NamedPort(*port) for port in endpoint.named_ports] or unset,
        )
    )


def _decode_endpoint(owner: Owner, ip: IPAddress, value: bytes) -> Endpoint:
    wire = _decode_json(_ENDPOINT, value)
    if _unicast(wire.ip) != ip:
        raise BadRowError(f"IP is {wire.ip}, not that of its key")
    if wire.id not in owner.identities and wire.id not in RESERVED_IDENTITIES:
        raise BadRowError(f"identity {wire.id} is not one of cluster id {owner.id}")
    return Endpoint(
        ip=ip,
        node_ip=_unicast(wire.host_ip) if wire.host_ip else None,
        identity=IdentityId(wire.id),
        pod=ObjectName(wire.namespace or "", wire.pod or ""),
        uid=wire.uid or "",
        service_account=wire.service_account or "",
    )


# --- what they share -----------------------------------------------------------------------------

_SPECIAL: Final[tuple[tuple[IPNetwork, str], ...]] = (
    (IPv4Network("0.0.0.0/8"), "unspecified"),
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link-local"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
    (IPv6Network("::/96"), "unspecified or loopback"),
    (IPv6Network("::ffff:0:0/96"), "IPv4-mapped"),
    (IPv6Network("fe80::/10"), "link-local"),
    (IPv6Network("ff00::/8"), "multicast"),
)


def _unicast(text: str) -> IPAddress:
    try:
        address = ip_address(text)
    except ValueError:
        raise BadRowError(f"{text!r} is no IP address") from None
    if isinstance(address, IPv6Address):
        bad = address.ipv4_mapped is not None or address.scope_id is not None
    else:
        bad = int(address) >> 24 == 0 or int(address) >> 28 == 15
    if (
        bad
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or not int(address)
    ):
        raise BadRowError(f"{text} is no address that a node or a pod can have")
    return address


def _check(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise BadRowError(f"{name} is {value!r}, not {expected!r}")


def _decode_json(decoder: msgspec.json.Decoder[V], value: bytes) -> V:
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRowError(str(error)) from None


def _sorted(by_address: Mapping[IPAddress, V]) -> Iterable[tuple[IPAddress, V]]:
    return sorted(by_address.items(), key=lambda item: (item[0].version, int(item[0])))


def _parse_object_name(text: str) -> ObjectName:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise BadRowError("its key is not <namespace>/<name>")
    return ObjectName(namespace, name)


def _parse_node_name(text: str) -> str:
    if not text or "/" in text:
        raise BadRowError("its key is not <node>")
    return text


def _parse_identity_id(text: str) -> IdentityId:
    if not (text.isascii() and text.isdecimal() and len(text) <= 8):
        raise BadRowError("its key is not a number")
    return IdentityId(int(text))


_CLUSTER_CONFIG: Final = msgspec.json.Decoder(_ClusterConfig)
_NODE: Final = msgspec.json.Decoder(_Node)
_SERVICE: Final = msgspec.json.Decoder(_Service)
_ENDPOINT: Final = msgspec.json.Decoder(_Endpoint)

NODES: Final = Kind[str, Node](
    name="nodes",
    state="cilium/state/nodes/v1/{cluster}/",
    cache="cilium/cache/nodes/v1/{cluster}/",
    key=str,
    parse_key=_parse_node_name,
    encode=_encode_node,
    decode=_decode_node,
)
SERVICES: Final = Kind[ObjectName, Service](
    name="services",
    state="cilium/state/services/v1/{cluster}/",
    cache="cilium/cache/services/v1/{cluster}/",
    key=str,
    parse_key=_parse_object_name,
    encode=_encode_service,
    decode=_decode_service,
)
IDENTITIES: Final = Kind[IdentityId, Identity](
    name="identities",
    state="cilium/state/identities/v1/id/",
    cache="cilium/cache/identities/v1/{cluster}/id/",
    key=str,
    parse_key=_parse_identity_id,
    encode=_encode_identity,
    decode=_decode_identity,
)
ENDPOINTS: Final = Kind[IPAddress, Endpoint](
    name="endpoints",
    state="cilium/state/ip/v1/default/",
    cache="cilium/cache/ip/v1/{cluster}/",
    key=str,
    parse_key=_unicast,
    encode=_encode_endpoint,
    decode=_decode_endpoint,
)
LOCAL_SERVICES: Final = Kind[ObjectName, Service](
    name="services",
    state="clustermesh/local/services/v1/{cluster}/",
    cache="clustermesh/local/services/v1/{cluster}/",
    key=str,
    parse_key=_parse_object_name,
    encode=_encode_local_service,
    decode=_decode_local_service,
)

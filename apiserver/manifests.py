"""Kubernetes manifests: YAML or JSON documents become objects, or a sentence that says why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import yaml

from clustermesh.errors import BadRowError
from clustermesh.kinds import check_pod_cidr, parse_address
from clustermesh.model import ObjectName, Protocol

from .objects import (
    CLUSTER_SCOPED,
    EXTERNAL_ADDRESS,
    KINDS,
    AnyObject,
    EndpointSlice,
    MeshNode,
    Namespace,
    Node,
    Pod,
    Service,
)

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_KEY: Final = re.compile(
    rf"({_SUBDOMAIN.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
)
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SAFE_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Document: TypeAlias = Mapping[str, Any]


class Loader(_SAFE_LOADER):  # type: ignore[misc] # which of the two is known at run time only
    """YAML as Kubernetes reads it: what looks like a date is a string."""

    yaml_implicit_resolvers: Mapping[str, Any] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in _SAFE_LOADER.yaml_implicit_resolvers.items()
    }


class Problem(NamedTuple):
    """What is wrong with a document, and where it is: `echo.yaml, document 2`."""

    where: str
    error: str


class Parsed(NamedTuple):
    """What a file holds. With `problems`, what it held before must not be forgotten."""

    objects: tuple[AnyObject, ...]
    problems: tuple[Problem, ...]


def parse(text: bytes, where: str) -> Parsed:
    """The objects of a file; documents of kinds that do not matter to the mesh are passed over."""
    objects: list[AnyObject] = []
    problems: list[Problem] = []
    known: set[tuple[type[AnyObject], ObjectName]] = set()
    try:
        documents = list(yaml.load_all(text, Loader=Loader))
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The last four: a tag such as !!int before a word that is none.
        return Parsed((), (Problem(where, f"no YAML: {' '.join(str(error).split())}"),))
    for number, item in _items(documents):
        try:
            if (parsed := _object(item)) is not None:
                if (type(parsed), parsed.key) in known:
                    raise BadRowError("the file has it already, further up")
                known.add((type(parsed), parsed.key))
                objects.append(parsed)
        except (BadRowError, msgspec.ValidationError) as error:
            problems.append(Problem(f"{where}, document {number}{_named(item)}", str(error)))
    return Parsed(tuple(objects), tuple(problems))


def _items(documents: Iterable[object]) -> Iterator[tuple[int, object]]:
    """Every object with the number of its document; a List holds several."""
    for number, document in enumerate(documents, 1):
        items = None
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
        if isinstance(items, list):
            yield from ((number, item) for item in items)
        elif document is not None:
            yield number, document


def _named(item: object) -> str:
    if not isinstance(item, dict) or not isinstance(item.get("metadata"), dict):
        return ""
    return f" ({item.get('kind')} {item['metadata'].get('name')})"


def _object(item: object) -> AnyObject | None:
    if not isinstance(item, dict) or "apiVersion" not in item or "kind" not in item:
        raise BadRowError("it has no apiVersion and kind")
    version, name = item["apiVersion"], item["kind"]
    if not isinstance(version, str) or not isinstance(name, str):
        raise BadRowError("its apiVersion or kind is no string")
    if name == "List" and item.get("items") is not None:
        raise BadRowError("items is no list")
    kind = KINDS.get((version, name))
    if kind is None:
        return None
    for path, known in _KNOWN[kind].items():
        _check_fields(item, path, known)
    parsed = msgspec.convert(item, kind, strict=True)
    _check_metadata(parsed)
    check(parsed)
    return parsed


def check(item: AnyObject) -> None:
    """Raises BadRowError for what Kubernetes would accept, and the mesh can make nothing of."""
    _CHECKS[type(item)](item)


def _check_fields(item: Document, path: str, known: frozenset[str]) -> None:
    """See that nothing below `path` is misspelt: it would be passed over, and nobody would know."""
    parts: list[Any] = [item]
    for step in filter(None, path.split(".")):
        parts = [p.get(step) for p in parts if isinstance(p, dict)]
        parts = [one for p in parts for one in (p if isinstance(p, list) else [p])]
    for part in parts:
        if isinstance(part, dict) and (unknown := part.keys() - known):
            prefix = f"{path}." if path else ""
            raise BadRowError(f"{prefix}{min(map(str, unknown))} is no field of a {item['kind']}")


def _check_metadata(item: AnyObject) -> None:
    metadata = item.metadata
    if isinstance(item, Namespace | Service):
        _name("metadata.name", metadata.name, _LABEL, "a DNS label")
    else:
        _name("metadata.name", metadata.name, _SUBDOMAIN, "a DNS name")
    if isinstance(item, CLUSTER_SCOPED):
        if metadata.namespace:
            raise BadRowError("metadata.namespace: this kind is in no namespace")
    elif not metadata.namespace:
        raise BadRowError("metadata.namespace is missing")
    else:
        _name("metadata.namespace", metadata.namespace, _LABEL, "a DNS label")
    for key, value in metadata.labels.items():
        if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)):
            raise BadRowError(f"metadata.labels: {key!r}: {value!r} is no label")


def _check_node(node: Any) -> None:
    for text in (*node.spec.pod_cidrs, node.spec.pod_cidr):
        if text:
            try:
                check_pod_cidr(ip_network(text))
            except ValueError as error:
                raise BadRowError(f"spec.podCIDRs: {error}") from None
    if external := node.metadata.annotations.external_address:
        _ip(f"metadata.annotations: {EXTERNAL_ADDRESS}", external)
    for address in node.status.addresses:
        if address.type in {"InternalIP", "ExternalIP"}:
            _ip("status.addresses", address.address)


def _check_mesh_node(mesh_node: Any) -> None:
    for text in mesh_node.spec.health_ips:
        _ip("spec.healthIPs", text)


def _check_pod(pod: Any) -> None:
    for text in (pod.status.pod_ip, pod.status.host_ip, *(p.ip for p in pod.status.pod_ips)):
        if text:
            _ip("status", text)
    for container in pod.spec.containers:
        for port in container.ports:
            _port("spec.containers.ports", port.container_port, port.protocol)


def _check_service(service: Any) -> None:
    for text in (service.spec.cluster_ip, *service.spec.cluster_ips):
        if text not in {"", "None"}:
            _ip("spec.clusterIPs", text)
    names = [port.name for port in service.spec.ports]
    for port in service.spec.ports:
        _port("spec.ports", port.port, port.protocol)
        if names.count(port.name) > 1:
            raise BadRowError(f"spec.ports: several are named {port.name!r}")


def _check_slice(piece: Any) -> None:
    if piece.address_type not in {"IPv4", "IPv6", "FQDN"}:
        raise BadRowError(f"addressType is {piece.address_type!r}, not IPv4, IPv6 or FQDN")
    if piece.address_type == "FQDN":
        return
    for endpoint in piece.endpoints or ():
        for text in endpoint.addresses:
            _ip("endpoints.addresses", text)
    for port in piece.ports or ():
        _port("ports", port.port, port.protocol or "TCP")


def _check_nothing(item: Any) -> None:
    del item


def _name(field: str, name: str, pattern: re.Pattern[str], what: str) -> None:
    if len(name) > 253 or not pattern.fullmatch(name):
        raise BadRowError(f"{field}: {name!r} is not {what} (lower-case letters, digits and -)")


def _ip(field: str, text: str) -> None:
    try:
        parse_address(text)
    except BadRowError as error:
        raise BadRowError(f"{field}: {error}") from None


def _port(field: str, port: int | None, protocol: str) -> None:
    if port is not None and not 1 <= port <= 65535:
        raise BadRowError(f"{field}: {port} is no port (1-65535)")
    if protocol not in tuple(Protocol):
        raise BadRowError(f"{field}: {protocol!r} is no protocol (TCP, UDP, SCTP)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CHECKS: Final[Mapping[type[AnyObject], Callable[[Any], None]]] = {
    Namespace: _check_nothing,
    Node: _check_node,
    MeshNode: _check_mesh_node,
    Pod: _check_pod,
    Service: _check_service,
    EndpointSlice: _check_slice,
}

# The fields that Kubernetes knows, where a misspelt one would change what the mesh does.
_TOP: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
_METADATA: Final = _words(
    "annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp "
    "finalizers generateName generation labels managedFields name namespace "
    "ownerReferences resourceVersion selfLink uid"
)
_KNOWN: Final[Mapping[type[AnyObject], Mapping[str, frozenset[str]]]] = {
    Namespace: {"": _TOP, "metadata": _METADATA},
    Node: {
        "": _TOP,
        "metadata": _METADATA,
        "spec": _words("configSource externalID podCIDR podCIDRs providerID taints unschedulable"),
    },
    MeshNode: {
        "": _TOP,
        "metadata": _METADATA,
        "spec": _words("addresses bootID healthIPs wireguardPublicKey"),
    },
    Pod: {"": _TOP, "metadata": _METADATA},
    Service: {
        "": _TOP,
        "metadata": _METADATA,
        "spec": _words(
            "allocateLoadBalancerNodePorts clusterIP clusterIPs externalIPs externalName "
            "externalTrafficPolicy healthCheckNodePort internalTrafficPolicy ipFamilies "
            "ipFamilyPolicy loadBalancerClass loadBalancerIP loadBalancerSourceRanges "
            "ports publishNotReadyAddresses selector sessionAffinity "
            "sessionAffinityConfig trafficDistribution type"
        ),
        "spec.ports": _words("appProtocol name nodePort port protocol targetPort"),
    },
    EndpointSlice: {
        "": frozenset({"apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"}),
        "metadata": _METADATA,
        "endpoints": _words(
            "addresses conditions deprecatedTopology hints hostname nodeName targetRef zone"
        ),
        "endpoints.conditions": frozenset({"ready", "serving", "terminating"}),
        "ports": _words("appProtocol name port protocol"),
    },
}

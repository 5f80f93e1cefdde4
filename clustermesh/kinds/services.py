"""`cilium/state/services/v1/<cluster>/<namespace>/<name>`, and our own in `clustermesh/local/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from sys import intern
from typing import Final, TypeVar

import msgspec
from msgspec import field

from clustermesh.errors import BadRowError
from clustermesh.model import (
    NOTHING,
    Affinity,
    IPAddress,
    ObjectName,
    Port,
    PortsByAddress,
    Protocol,
    Service,
)

from .checks import check, decode_json, parse_address
from .kind import Kind, Owner

K = TypeVar("K")
V = TypeVar("V")


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
        frontends=NOTHING,
        backends=_ports_by_address(wire.backends),
        shared=True,
    )


def _decode_local_service(owner: Owner, name: ObjectName, value: bytes) -> Service:
    wire = _checked_service(owner, name, value)
    return Service(
        cluster=owner.cluster,
        cluster_id=owner.id,
        name=name,
        frontends=_ports_by_address(wire.frontends),
        backends=_ports_by_address(wire.backends),
        labels=wire.labels or NOTHING,
        selector=wire.selector or NOTHING,
        shared=wire.shared,
        affinity=Affinity.NONE if wire.affinity is msgspec.UNSET else wire.affinity,
    )


def _checked_service(owner: Owner, name: ObjectName, value: bytes) -> _Service:
    wire = decode_json(_SERVICE, value)
    check("namespace", wire.namespace, name.namespace)
    check("name", wire.name, name.name)
    check("cluster", wire.cluster, owner.cluster)
    check("clusterID", wire.cluster_id, owner.id)
    return wire


def _wire_ports(addresses: PortsByAddress) -> _WirePorts:
    return {
        str(ip): {name: _Port(p.protocol, p.port) for name, p in sorted(ports.items())}
        for ip, ports in _sorted(addresses)
    }


def _ports_by_address(wire: _WirePorts | None) -> PortsByAddress:
    if not wire:
        return NOTHING
    return {
        parse_address(ip): _ports(tuple((n, p.protocol, p.port) for n, p in (ports or {}).items()))
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


def _sorted(by_address: Mapping[IPAddress, V]) -> Iterable[tuple[IPAddress, V]]:
    return sorted(by_address.items(), key=lambda item: (item[0].version, int(item[0])))


def _parse_object_name(text: str) -> ObjectName:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise BadRowError("its key is not <namespace>/<name>")
    # A name is in the rows of every cluster that has the service; there it is one string.
    return ObjectName(intern(namespace), intern(name))


_SERVICE: Final = msgspec.json.Decoder(_Service)

SERVICES: Final = Kind[ObjectName, Service](
    name="services",
    state="cilium/state/services/v1/{cluster}/",
    cache="cilium/cache/services/v1/{cluster}/",
    key=str,
    parse_key=_parse_object_name,
    encode=_encode_service,
    decode=_decode_service,
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

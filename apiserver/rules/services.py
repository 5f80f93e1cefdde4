"""What a Service and its EndpointSlices become for the mesh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Final

from apiserver.objects import EndpointSlice, Service
from clustermesh import model
from clustermesh.model import (
    Affinity,
    ClusterId,
    ClusterName,
    IPAddress,
    ObjectName,
    Port,
    Protocol,
    Zone,
)

# STABLE API: the annotations; each may be written with either prefix, Cilium's counts first.
PREFIXES: Final = ("service.cilium.io/", "clustermesh.io/")


def services(
    key: ObjectName,
    objects: Mapping[str, Service],
    slices: Mapping[ObjectName, EndpointSlice],
    *,
    cluster: ClusterName,
    cluster_id: ClusterId,
) -> Mapping[ObjectName, model.Service]:
    """
    The global service `key`, or nothing if it is not there, or not global.

    A service without ready endpoints is exported without backends: its other clusters must know
    that it has none. An ExternalName service has no address and no ports, so it is left alone.
    """
    service = next(iter(objects.values()), None)
    if service is None or not _flag(service, "global", default=False):
        return {}
    if service.spec.type == "ExternalName":
        return {}
    ports = {p.name: Port(Protocol(p.protocol), p.port) for p in service.spec.ports}
    backends: dict[IPAddress, dict[str, Port]] = {}
    hostnames: dict[IPAddress, str] = {}
    zones: dict[IPAddress, Zone] = {}
    for piece in slices.values():
        _add_backends(piece, backends, hostnames, zones)
    return {
        key: model.Service(
            cluster=cluster,
            cluster_id=cluster_id,
            name=key,
            frontends=dict.fromkeys(frontend_addresses(service), ports),
            backends=backends,
            labels=service.metadata.labels,
            selector=service.spec.selector or {},
            hostnames=hostnames,
            zones=zones,
            shared=_flag(service, "shared", default=True),
            include_external=True,
            affinity=affinity(service),
        )
    }


def frontend_addresses(service: Service) -> tuple[IPAddress, ...]:
    """The ClusterIPs; none for a headless service."""
    spec = service.spec
    texts = spec.cluster_ips or (spec.cluster_ip,)
    return tuple(ip_address(text) for text in texts if text not in {"", "None"})


def affinity(service: Service) -> Affinity:
    """The backends that the service prefers; an unknown word means no preference."""
    word = (_annotation(service, "affinity") or "").lower()
    return Affinity(word) if word in tuple(Affinity) else Affinity.NONE


def _add_backends(
    piece: EndpointSlice,
    backends: dict[IPAddress, dict[str, Port]],
    hostnames: dict[IPAddress, str],
    zones: dict[IPAddress, Zone],
) -> None:
    if piece.address_type == "FQDN":
        return
    ports = {
        p.name or "": Port(Protocol(p.protocol or "TCP"), p.port)
        for p in piece.ports or ()
        if p.port is not None
    }
    for endpoint in piece.endpoints or ():
        if endpoint.conditions.ready is False:
            continue
        for text in endpoint.addresses:
            ip = ip_address(text)
            backends.setdefault(ip, {}).update(ports)
            if endpoint.hostname:
                hostnames[ip] = endpoint.hostname
            if endpoint.zone:
                hints = endpoint.hints.for_zones if endpoint.hints else None
                zones[ip] = Zone(endpoint.zone, tuple(z.name for z in hints or ()))


def _flag(service: Service, name: str, *, default: bool) -> bool:
    value = _annotation(service, name)
    return default if value is None else value.lower() == "true"


def _annotation(service: Service, name: str) -> str | None:
    annotations: Iterable[str | None] = (
        service.metadata.annotations.get(prefix + name) for prefix in PREFIXES
    )
    return next((value for value in annotations if value is not None), None)

"""`cilium/state/ip/v1/default/<ip>`."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import field

from clustermesh.errors import BadRowError
from clustermesh.model import (
    HOST,
    REMOTE_NODE,
    Endpoint,
    IdentityId,
    IPAddress,
    ObjectName,
)

from .checks import decode_json, parse_address
from .kind import RESERVED_IDENTITIES, Kind, Owner


class _NamedPort(msgspec.Struct, rename="pascal"):
    name: str
    port: int
    protocol: str


class _Endpoint(msgspec.Struct, rename="pascal"):
    ip: str = field(name="IP")
    host_ip: str | None = field(name="HostIP", default="")
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
            host_ip=str(endpoint.node_ip or ""),
            id=endpoint.identity,
            namespace=endpoint.pod.namespace or unset,
            pod=endpoint.pod.name or unset,
            uid=endpoint.uid or unset,
            service_account=endpoint.service_account or unset,
            named_ports=[_NamedPort(*port) for port in endpoint.named_ports] or unset,
        )
    )


def _decode_endpoint(owner: Owner, ip: IPAddress, value: bytes) -> Endpoint:
    wire = decode_json(_ENDPOINT, value)
    if parse_address(wire.ip) != ip:
        raise BadRowError(f"IP is {wire.ip}, not that of its key")
    if wire.id not in owner.identities and wire.id not in RESERVED_IDENTITIES:
        raise BadRowError(f"identity {wire.id} is not one of cluster id {owner.id}")
    # What a cluster calls its host is, to whoever reads it, a remote node.
    identity = REMOTE_NODE if wire.id == HOST else IdentityId(wire.id)
    return Endpoint(
        ip=ip,
        node_ip=parse_address(wire.host_ip) if wire.host_ip else None,
        identity=identity,
        pod=ObjectName(wire.namespace or "", wire.pod or ""),
        uid=wire.uid or "",
        service_account=wire.service_account or "",
    )


_ENDPOINT: Final = msgspec.json.Decoder(_Endpoint)

ENDPOINTS: Final = Kind[IPAddress, Endpoint](
    name="endpoints",
    state="cilium/state/ip/v1/default/",
    cache="cilium/cache/ip/v1/{cluster}/",
    key=str,
    parse_key=parse_address,
    encode=_encode_endpoint,
    decode=_decode_endpoint,
)

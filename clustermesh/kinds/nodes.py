"""`cilium/state/nodes/v1/<cluster>/<node>`."""

from __future__ import annotations

import base64
import binascii
from ipaddress import (
    ip_network,
)
from typing import Final

import msgspec
from msgspec import field

from clustermesh.errors import BadRowError
from clustermesh.model import (
    NOTHING,
    IPNetwork,
    Node,
)

from .checks import check, check_pod_cidr, decode_json, parse_address
from .kind import Kind, Owner

# STABLE API: annotations of Cilium's node are free for anybody's use.
_EXTERNAL_ADDRESS: Final = "clustermesh.io/external-address"


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
            ipv4_health_ip=_health_ip(node, 4),
            ipv6_health_ip=_health_ip(node, 6),
            labels=dict(sorted(node.labels.items())),
            annotations=(
                {_EXTERNAL_ADDRESS: str(node.external_address)} if node.external_address else None
            ),
            wireguard_pub_key=node.wireguard_public_key,
            boot_id=node.boot_id,
        )
    )


def _decode_node(owner: Owner, name: str, value: bytes) -> Node:
    wire = decode_json(_NODE, value)
    check("Name", wire.name, name)
    check("Cluster", wire.cluster, owner.cluster)
    check("ClusterID", wire.cluster_id, owner.id)
    cidrs = (
        wire.ipv4_alloc_cidr,
        *(wire.ipv4_secondary_alloc_cidrs or ()),
        wire.ipv6_alloc_cidr,
        *(wire.ipv6_secondary_alloc_cidrs or ()),
    )
    external = (wire.annotations or {}).get(_EXTERNAL_ADDRESS)
    return Node(
        cluster=owner.cluster,
        cluster_id=owner.id,
        name=name,
        addresses=tuple((a.type, parse_address(a.ip)) for a in wire.ip_addresses or ()),
        pod_cidrs=tuple(_pod_cidr(c) for c in cidrs if c),
        labels=wire.labels or NOTHING,
        wireguard_public_key=wire.wireguard_pub_key,
        boot_id=wire.boot_id,
        health_ips=tuple(
            parse_address(ip) for ip in (wire.ipv4_health_ip, wire.ipv6_health_ip) if ip
        ),
        external_address=parse_address(external) if external else None,
    )


def _health_ip(node: Node, version: int) -> str:
    return next((str(ip) for ip in node.health_ips if ip.version == version), "")


def _wire_cidr(cidr: IPNetwork) -> _Cidr:
    return _Cidr(str(cidr.network_address), base64.b64encode(cidr.netmask.packed).decode())


def _pod_cidr(wire: _Cidr) -> IPNetwork:
    try:
        mask = base64.b64decode(wire.mask, validate=True)
        bits = int.from_bytes(mask)
        length = bits.bit_count()
        address = parse_address(wire.ip)
        if len(mask) != len(address.packed) or bits != ((1 << length) - 1) << (
            8 * len(mask) - length
        ):
            raise ValueError("its mask does not fit")
        cidr = ip_network((address, length))
    except (ValueError, binascii.Error) as error:
        raise BadRowError(f"pod CIDR {wire.ip} with mask {wire.mask}: {error}") from None
    return check_pod_cidr(cidr)


def _parse_node_name(text: str) -> str:
    if not text or "/" in text:
        raise BadRowError("its key is not <node>")
    return text


_NODE: Final = msgspec.json.Decoder(_Node)

NODES: Final = Kind[str, Node](
    name="nodes",
    state="cilium/state/nodes/v1/{cluster}/",
    cache="cilium/cache/nodes/v1/{cluster}/",
    key=str,
    parse_key=_parse_node_name,
    encode=_encode_node,
    decode=_decode_node,
)

"""A bare WireGuard link between the pods of two nodes: what encryption costs without any mesh."""

from __future__ import annotations

import base64
import errno
from functools import partial
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink.exceptions import NetlinkError

from clustermesh.sandbox.model import Node
from clustermesh.sandbox.namespace import run_in_new, run_inside

from .bed import Bed

_DEVICE: Final = "bare"
_PORT: Final = 51999  # none of the mesh's
_MTU: Final = 1440  # as the mesh has it over IPv4
_ADDRESSES: Final = ("10.199.1.1", "10.199.2.1")  # of nobody else in a sandbox


def has_wireguard() -> bool:
    """Whether the kernel that this runs on makes WireGuard devices."""
    return run_in_new(_makes_one)


def _makes_one() -> bool:
    with IPRoute() as ip:
        try:
            ip.link("add", ifname=_DEVICE, kind="wireguard")
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                return False
            raise
    return True


def link(sandbox: Bed, first: Node, second: Node) -> str:
    """
    Give the first pods of two nodes one more address each, and connect those by WireGuard.

    With as many hops as the mesh has: from pod to node, through the link, from node to pod.

    Returns:
        the address of the second node's pod.
    """
    ends = [
        _End(node, X25519PrivateKey.generate(), address)
        for node, address in zip((first, second), _ADDRESSES, strict=True)
    ]
    for own, other in (ends, reversed(ends)):
        node, pod = own.node, own.node.pods[0]
        run_inside(sandbox.sandbox.namespace(node), partial(_make_device, own, other))
        sandbox.run(node, "ip", "route", "add", own.address, "dev", pod.host_device)
        sandbox.run(node, "ip", "route", "add", other.address, "dev", _DEVICE)
        sandbox.run(pod, "ip", "address", "add", f"{own.address}/32", "dev", "eth0")
        via = ("via", str(node.gateways.v4), "dev", "eth0", "src", own.address)
        sandbox.run(pod, "ip", "route", "add", other.address, *via)
    return ends[1].address


class _End(NamedTuple):
    node: Node
    key: X25519PrivateKey
    address: str


def _make_device(own: _End, other: _End) -> None:
    with IPRoute() as ip, WireGuard() as wireguard:
        ip.link("add", ifname=_DEVICE, kind="wireguard", mtu=_MTU)
        wireguard.set(
            _DEVICE,
            listen_port=_PORT,
            private_key=_base64(own.key.private_bytes_raw()),
            peer={
                "public_key": _base64(other.key.public_key().public_bytes_raw()),
                "endpoint_addr": str(other.node.addresses.v4),
                "endpoint_port": _PORT,
                "allowed_ips": [f"{other.address}/32"],
            },
        )
        ip.link("set", index=ip.link_lookup(ifname=_DEVICE)[0], state="up")


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()

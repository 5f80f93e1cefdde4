"""What no row of any cluster may say."""

from __future__ import annotations

from ipaddress import (
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Final, TypeVar

import msgspec

from clustermesh.errors import BadRowError
from clustermesh.model import (
    IPAddress,
    IPNetwork,
)

K = TypeVar("K")
V = TypeVar("V")

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


def parse_address(text: str) -> IPAddress:
    """
    The address `text`, if a node, a pod or a service can have it.

    Raises:
        BadRowError: it is no address, or one that means something else on every machine.
    """
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
        raise BadRowError(f"{text} is no address that a node, a pod or a service can have")
    return address


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


def check(name: str, value: object, expected: object) -> None:
    """Raise BadRowError, naming the field, unless `value` is `expected`."""
    if value != expected:
        raise BadRowError(f"{name} is {value!r}, not {expected!r}")


def decode_json(decoder: msgspec.json.Decoder[V], value: bytes) -> V:
    """Decode `value`. Raises BadRowError: it is no such JSON."""
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRowError(str(error)) from None

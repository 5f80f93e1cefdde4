"""What this node's network is like: the facts that routes are made from."""

from __future__ import annotations

import errno
from collections.abc import Collection
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from socket import AF_INET, AF_INET6
from typing import Any, Final, TypeAlias

import msgspec

from clustermesh.model import IPAddress, IPNetwork

from .pyroute import Rtnetlink

_RT_TABLE_MAIN: Final = 254
_RT_SCOPE_UNIVERSE: Final = 0

IPInterface: TypeAlias = IPv4Interface | IPv6Interface


class Facts(msgspec.Struct, frozen=True):
    """A node's devices and addresses, at one moment."""

    underlay: str  # the device towards the other nodes
    mtu: int  # of that device
    addresses: tuple[tuple[str, IPInterface], ...] = ()  # global ones, by device
    pod_cidrs: tuple[IPNetwork, ...] = ()  # this node's own
    given_mtu: int | None = None  # what a user says of it, who knows of a narrower place
    node_ips: tuple[IPAddress, ...] = ()  # this node's own, as far as they are there

    def source(self, version: int) -> IPAddress | None:
        """
        What this node's own processes call other clusters from, by IP version.

        Those know whose an address in the node's pod CIDRs is, and how to reach it; and of its own
        addresses that it is the node's. Of all others that it may have they know nothing.
        """
        own = (ip for ip in self.node_ips if ip.version == version)
        return self.pod_source(version) or next(own, None)

    def pod_source(self, version: int) -> IPAddress | None:
        """An address of this node inside its own pod CIDRs, by IP version."""
        own = [cidr for cidr in self.pod_cidrs if cidr.version == version]
        return next(
            (a.ip for _, a in self.addresses if any(a.ip in cidr for cidr in own)),
            None,
        )

    def device_towards(self, address: IPAddress) -> str:
        """The device on whose segment `address` is; the underlay if it is on none."""
        return next((device for device, a in self.addresses if address in a.network), self.underlay)


async def read_facts(
    ip: Rtnetlink,
    *,
    node_ips: Collection[IPAddress] = (),
    pod_cidrs: tuple[IPNetwork, ...] = (),
) -> Facts:
    """
    The facts of the network namespace that `ip` was opened in.

    Args:
        node_ips: the node's addresses; the underlay is the device that has one of them, and
            without any it is the device of the default route.
        pod_cidrs: the node's own.

    Raises:
        OSError: ENODEV when no device is the underlay.
    """
    links = {link["index"]: link for link in await ip.dump(ip.get_links)}
    addresses = await _addresses(ip, links)
    name = next((device for device, a in addresses if a.ip in node_ips), None)
    if name is None and not node_ips:
        name = await _default_device(ip, links)
    if name is None:
        what = f"has {' or '.join(map(str, node_ips))}" if node_ips else "has a default route"
        raise OSError(errno.ENODEV, f"no network device of this node {what}")
    mtu = next(link.get("mtu") for link in links.values() if link.get("ifname") == name)
    there = {a.ip for _, a in addresses}
    own = tuple(ip for ip in node_ips if ip in there)
    return Facts(name, mtu, tuple(addresses), pod_cidrs, node_ips=own)


async def read_addresses(ip: Rtnetlink) -> list[tuple[str, IPInterface]]:
    """The global addresses of the network namespace that `ip` was opened in, by device."""
    return await _addresses(ip, {link["index"]: link for link in await ip.dump(ip.get_links)})


async def read_holders(ip: Rtnetlink) -> set[tuple[int, IPAddress]]:
    """The same addresses, each with the index of a device that has it."""
    return {
        (a["index"], ip_address(_local(a)))
        for a in await ip.dump(ip.get_addr)
        if a["scope"] == _RT_SCOPE_UNIVERSE
    }


async def _addresses(ip: Rtnetlink, links: dict[int, Any]) -> list[tuple[str, IPInterface]]:
    return [
        (links[a["index"]].get("ifname"), ip_interface(f"{_local(a)}/{a['prefixlen']}"))
        for a in await ip.dump(ip.get_addr)
        if a["index"] in links and a["scope"] == _RT_SCOPE_UNIVERSE
    ]


def _local(address: Any) -> str:
    """On a point-to-point device `address` is the other end's."""
    return str(address.get("local") or address.get("address"))


async def _default_device(ip: Rtnetlink, links: dict[int, Any]) -> str | None:
    """The device of the preferred default route."""
    found = []
    for family in (AF_INET, AF_INET6):
        for route in await ip.dump(ip.get_default_routes, family=family, table=_RT_TABLE_MAIN):
            hops = route.get("multipath") or [route]
            devices = [hop.get("oif") for hop in hops]
            found += [(route.get("priority") or 0, d) for d in devices if d in links]
    return links[min(found)[1]].get("ifname") if found else None

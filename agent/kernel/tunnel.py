"""
The tunnel device of a node, which carries both families to all peers, inside and outside.

Where a packet goes is not its business but that of the BPF programs on it (collect-metadata mode),
so it has no peers of its own, and its kind only says what the bytes in front look like.
"""

from __future__ import annotations

import array
import enum
import errno
import fcntl
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec


class TunnelProtocol(enum.StrEnum):
    """What pod packets are wrapped in. Both have 24 bits for the identity, and cost the same."""

    VXLAN = "vxlan"
    GENEVE = "geneve"


OVERHEAD: Final = {4: 50, 6: 70}
"""Bytes that a tunnel adds, by IP version of the outside: inner Ethernet 14, header 8, UDP 8, IP.
A Geneve header is as long as VXLAN's: we add no options."""

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL, _ETHTOOL_SGRO = 0x8946, 0x2C

_DEFAULT_PORTS: Final = {TunnelProtocol.VXLAN: 8472, TunnelProtocol.GENEVE: 6081}  # as Cilium's

# Outside IPv6 a zero checksum has to be allowed; the inner packet has one of its own.
_ATTRIBUTES: Final[Mapping[TunnelProtocol, Mapping[str, int]]] = {
    TunnelProtocol.VXLAN: {
        "vxlan_collect_metadata": 1,
        "vxlan_learning": 0,
        "vxlan_udp_zero_csum6_tx": 1,
        "vxlan_udp_zero_csum6_rx": 1,
    },
    TunnelProtocol.GENEVE: {
        "geneve_collect_metadata": 1,
        "geneve_udp_zero_csum6_rx": 1,
    },
}


class Tunnel(msgspec.Struct, frozen=True):
    """How pod packets are wrapped: the same in all clusters."""

    protocol: TunnelProtocol = TunnelProtocol.VXLAN
    udp_port: int = 0  # 0: the usual one of the protocol

    @property
    def device(self) -> str:
        """
        Its name.

        # STABLE API: adopted by the next agent, and what uninstall removes.
        """
        return f"cm_{self.protocol}"

    @property
    def port(self) -> int:
        """The UDP port at which peers receive."""
        return self.udp_port or _DEFAULT_PORTS[self.protocol]

    def attributes(self, mtu: int) -> Mapping[str, Any]:
        """What the kernel is asked for to make it."""
        return {
            "ifname": self.device,
            "kind": str(self.protocol),
            "mtu": mtu,
            f"{self.protocol}_port": self.port,
            **_ATTRIBUTES[self.protocol],
        }

    def is_made_so(self, link: Any) -> bool:
        """
        Whether the device of that name is one that we would make.

        Raises:
            OSError: EEXIST, it is not even of that kind.
        """
        kind, data = self.protocol, link.get(("linkinfo", "data"))
        if not is_ours(link, self):
            raise OSError(
                errno.EEXIST, f"{self.device} is no {kind} device, so it is not ours: rename it"
            )
        wanted = {f"{kind}_port": self.port, **_ATTRIBUTES[kind]}
        has = {name: int(data.get_attr(f"IFLA_{name.upper()}") or 0) for name in wanted}
        return has == wanted

    def __str__(self) -> str:
        return f"{self.device} on UDP port {self.port}"


TUNNELS: Final = tuple(map(Tunnel, TunnelProtocol))
"""One of each protocol, to look for their devices."""


def is_ours(link: Any, tunnel: Tunnel) -> bool:
    """Whether the device that has the tunnel's name is of its kind."""
    return bool(link.get(("linkinfo", "kind")) == tunnel.protocol)


def disable_gro(device: str) -> None:
    """
    Have packets of a tunnel device not merged again, after the underlay's device has tried to.

    It costs each packet a turn in a queue, and merges nothing that was not merged before.

    Raises:
        OSError: ENODEV, there is no such device in this network namespace.
    """
    value = array.array("I", (_ETHTOOL_SGRO, 0))  # struct ethtool_value
    request = struct.pack("16sP16x", device.encode(), value.buffer_info()[0])  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        fcntl.ioctl(any_, _SIOCETHTOOL, request)

"""What is on the wire between the nodes of a sandbox, while it goes by."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, Self

from clustermesh.model import IPAddress, IPNetwork
from clustermesh.sandbox.namespace import run_inside

from .mesh import Mesh

_ETH_P_ALL: Final = 3
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_UDP: Final = 17
_VXLAN: Final = 8472
_WIREGUARD: Final = range(51871, 51875)
_HEADERS: Final = 256  # bytes of a frame that are looked at: an inner packet's addresses among them


class Capture:
    """
    Every packet of the underlay for as long as a `with` lasts, counted by what it is:

    plain         between pods of different clusters, or a pod and a node, and anybody can read it
    vxlan         the same, in a tunnel
    wireguard     encrypted
    """

    def __init__(self, mesh: Mesh) -> None:
        self.seen: Counter[str] = Counter()
        self.plain: list[str] = []  # the first of them
        self._owner: dict[IPNetwork, str] = {
            cidr: node.cluster for node in mesh.nodes for cidr in node.pod_cidrs
        }
        self._node: dict[IPAddress, str] = {
            address: node.cluster for node in mesh.nodes for address in node.addresses
        }
        underlay = mesh.world.sandbox.namespace(None)
        self._socket = run_inside(underlay, _open)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        time.sleep(0.1)  # what is on its way counts
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frame = self._socket.recv(_HEADERS)
            except TimeoutError:
                continue
            self._look(frame)

    def _look(self, frame: bytes) -> None:
        kind, packet = frame[12:14], frame[14:]
        if kind == _IPV4:
            protocol, header = packet[9], (packet[0] & 0xF) * 4
        elif kind == _IPV6:
            protocol, header = packet[6], 40
        else:
            return
        if pair := self._pods(kind, packet):
            self.seen["plain"] += 1
            self.plain = [*self.plain, pair][:10]
        elif protocol == _UDP:
            port = int.from_bytes(packet[header + 2 : header + 4], "big")
            if port in _WIREGUARD:
                self.seen["wireguard"] += 1
            elif port == _VXLAN:
                inner = packet[header + 16 :]
                self.seen["vxlan"] += bool(self._pods(inner[12:14], inner[14:]))

    def _pods(self, kind: bytes, packet: bytes) -> str:
        """Source and destination, if they are of different clusters, and one of them is a pod."""
        if kind == _IPV4:
            source, destination = ip_address(packet[12:16]), ip_address(packet[16:20])
        elif kind == _IPV6:
            source, destination = ip_address(packet[8:24]), ip_address(packet[24:40])
        else:
            return ""
        pods = {self._owner_of(source), self._owner_of(destination)} - {None}
        nodes = {self._node.get(source), self._node.get(destination)} - {None}
        return f"{source} > {destination}" if pods and len(pods | nodes) > 1 else ""

    def _owner_of(self, ip: IPAddress) -> str | None:
        length = 24 if ip.version == 4 else 64
        network: type[IPv4Network | IPv6Network] = IPv4Network if length == 24 else IPv6Network
        return self._owner.get(
            network((int(ip) >> (ip.max_prefixlen - length) << (ip.max_prefixlen - length), length))
        )


def _open() -> socket.socket:
    """A socket in this thread's network namespace that hears every device."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    opened.settimeout(0.05)
    return opened

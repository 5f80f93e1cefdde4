"""
Which pods of this node sit on a veth, and on which: what the fast path has to know.

The kernel itself is asked, so that it does not matter which CNI has made them. A pod's address is
resolved (ARP, NDP) on a veth, or on a bridge that knows behind which veth the MAC address is. A pod
can claim what it likes there; that its address is also routed to that device is what counts.

A veth whose other end is in this namespace too joins two parts of the node's own network: whatever
is behind it, the fast path could not deliver there, and leaves it to the stack.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from agent.rows import Pod
from clustermesh.model import IPAddress, IPNetwork

from .pyroute import NetlinkError, Rtnetlink
from .route_messages import RTM_DELLINK, RTM_NEWLINK, Message, attributes, messages
from .routes import open_netlink

log = logging.getLogger(__name__)

# linux/rtnetlink.h, linux/neighbour.h, linux/if_bridge.h
_RTMGRP_LINK, _RTMGRP_NEIGH = 0x1, 0x4
_RTM_NEWNEIGH = 28
_NDA_DST, _NDA_LLADDR = 1, 2
_VALID: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
_NEIGHBOUR: Final = struct.Struct("=BBHiHBB")  # struct ndmsg
_RECEIVE: Final = 1 << 16

_SOON: Final = 0.2  # seconds, in which a pod's device, address and route come one after the other
_ANYWAY: Final = 60.0
_REMEMBERED: Final = 8192  # neighbours


class _Link(NamedTuple):
    kind: str
    mac: str
    bridge: int  # that it is a port of, or 0
    leads_elsewhere: bool  # its other end is in another network namespace

    @property
    def can_be_a_pods(self) -> bool:
        """Whether it can be the node's end of a pod's link."""
        return self.kind == "veth" and self.leads_elsewhere


async def read_pods(
    ip: Rtnetlink, pod_cidrs: Collection[IPNetwork], before: Mapping[IPAddress, Pod]
) -> dict[IPAddress, Pod]:
    """
    The pods in `pod_cidrs`, by address.

    Args:
        before: as found the last time. The kernel forgets an address that its own stack does not
            use, so what is on the fast path stays for as long as its device and route do.

    Raises:
        OSError: EAGAIN when devices or neighbours change faster than they can be read.
    """
    links = {link["index"]: _link(link) for link in await ip.dump(ip.get_links)}
    ports = {
        (entry.get("master"), entry.get("lladdr")): entry["ifindex"]
        for entry in await ip.dump(ip.get_neighbours, family=socket.AF_BRIDGE)
        if entry.get("master")
    }
    found: dict[IPAddress, list[Pod]] = defaultdict(list)
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in await ip.dump(ip.get_neighbours, family=family):
            if (pod := _pod(entry, links, ports)) is not None:
                address = ip_address(entry.get("dst"))
                if any(address in cidr for cidr in pod_cidrs):
                    found[address].append(pod)
    for address, pod in before.items():
        if address not in found and _is_there(pod, links):
            found[address].append(pod)
    pods = {}
    for address, candidates in found.items():
        device = await _device_of(ip, address)
        if (pod := next((p for p in candidates if p.device == device), None)) is not None:
            pods[address] = pod
    return pods


async def follow_pods(
    ip: Rtnetlink,
    pod_cidrs: Callable[[], Collection[IPNetwork]],
    before: Mapping[IPAddress, Pod],
) -> AsyncIterator[Mapping[IPAddress, Pod]]:
    """Yield the pods at once, and whenever there may be others; see `read_pods`."""
    found = before
    async for _ in pod_changes():
        try:
            found = await read_pods(ip, pod_cidrs(), found)
        except OSError as error:
            log.warning("looking for this node's pods: %s; again at the next change", error)
        else:
            yield found


async def pod_changes() -> AsyncIterator[None]:
    """Yield at once, then whenever there may be other pods, in the calling thread's namespace."""
    with open_netlink(_RTMGRP_LINK, _RTMGRP_NEIGH) as opened:
        known: set[bytes] = set()
        while True:
            yield
            try:
                async with asyncio.timeout(_ANYWAY):
                    while not await _hear(opened, known):
                        pass
            except TimeoutError:
                known.clear()
            await asyncio.sleep(_SOON)


async def _hear(opened: socket.socket, known: set[bytes]) -> bool:
    """Whether what is heard next is worth a look. `known` are neighbours that have been heard."""
    try:
        data = await asyncio.get_running_loop().sock_recv(opened, _RECEIVE)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return True
    news = False
    for message in messages(data):
        if message.type in {RTM_NEWLINK, RTM_DELLINK}:
            known.clear()
            news = True
        elif message.type == _RTM_NEWNEIGH and (said := _neighbour(message)):
            news |= said not in known
            if len(known) >= _REMEMBERED:  # more than there are pods: somebody makes addresses up
                known.clear()
            known.add(said)
    return news


def _neighbour(message: Message) -> bytes:
    """Device, address and MAC address of a neighbour; empty while it is none."""
    family, _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(message.payload)
    if family != socket.AF_BRIDGE and not state & _VALID:
        return b""
    found = attributes(message.payload[_NEIGHBOUR.size :])
    parts = (found.get(kind, b"") for kind in (_NDA_DST, _NDA_LLADDR))
    return b"".join((struct.pack("=i", index), *parts))


def _pod(
    entry: Any, links: Mapping[int, _Link], ports: Mapping[tuple[int, str], int]
) -> Pod | None:
    """What an entry of the neighbour table stands for, if that can be a pod."""
    device, mac = entry["ifindex"], entry.get("lladdr")
    link = links.get(device)
    if link is None or not entry["state"] & _VALID or not mac or not entry.get("dst"):
        return None
    port = ports.get((device, mac), 0) if link.kind == "bridge" else device
    if port not in links or not links[port].can_be_a_pods:
        return None
    return Pod(port, device, mac, link.mac)


def _is_there(pod: Pod, links: Mapping[int, _Link]) -> bool:
    device, port = links.get(pod.device), links.get(pod.port)
    if device is None or port is None or device.mac != pod.gateway:
        return False
    return pod.device in {pod.port, port.bridge}


async def _device_of(ip: Rtnetlink, address: IPAddress) -> int:
    """The device on which the kernel looks for `address`; 0 if it asks a router, or nobody."""
    try:
        (route,) = list(await ip.route("get", dst=str(address)))
    except NetlinkError:
        return 0
    return 0 if route.get("gateway") else int(route.get("oif") or 0)


def _link(link: Any) -> _Link:
    kind = link.get(("linkinfo", "kind")) or ""
    leads_elsewhere = link.get("link_netnsid") is not None
    return _Link(kind, link.get("address") or "", link.get("master") or 0, leads_elsewhere)

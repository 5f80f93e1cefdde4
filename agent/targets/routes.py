"""
Routes to the pods of other clusters, in a table of our own.

Either into the tunnel device, where BPF programs find the node by the ipcache, or straight to the
node, where the segment carries pod addresses; and none where the network knows the way itself. The
table is looked up before `main`, so the CNI's own routes stay as they are.

What is wrapped or encrypted has a second table, looked up by what this node's pods send and by
nothing else: by it they reach the nodes of other clusters themselves. So they answer a node that
has called them from its own address by the way that it came, as a strict reverse-path filter wants
it; and what is sent between the nodes, all that wraps and encrypts among it, never meets it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Final

from agent.kernel.facts import Facts
from agent.kernel.monitor import (
    AddressChange,
    Change,
    LinkChange,
    MarkRuleChange,
    Overrun,
    RouteChange,
    RuleDeleted,
)
from agent.kernel.netlink import Netlink
from agent.kernel.route_messages import KernelRoute
from agent.kernel.tunnel import OVERHEAD, Tunnel
from agent.rows import Route, RouteKey, Routing
from clustermesh.model import IPAddress

_MINIMUM_MTU: Final = 1280  # of IPv6: below it the kernel takes IPv6 off a device

_ENCRYPTION_OVERHEAD: Final = {4: 60, 6: 80}
"""Bytes that WireGuard adds, by IP version of the outside: its header 16, tag 16, UDP 8, IP."""


def kernel_route(key: RouteKey, route: Route, tunnel: Tunnel, facts: Facts) -> KernelRoute | None:
    """What the route `key` is on a node of which `facts` hold; None: it is the network's."""
    if route.node_ip is None:
        return None
    # What pods send has a source already.
    source = None if key.from_pods else facts.source(key.prefix.version)
    if route.device:
        mtu = encrypted_mtu(facts.given_mtu or facts.mtu, route.node_ip.version)
        return KernelRoute(route.device, None, source, mtu)
    if route.routing is Routing.DIRECT:
        # Without `onlink`: the kernel itself refuses a node that is not on the segment.
        device = facts.device_towards(route.node_ip)
        return KernelRoute(device, route.node_ip, source, facts.given_mtu)
    return KernelRoute(tunnel.device, None, source, tunnel_mtu(facts, route.node_ip.version))


def tunnel_mtu(facts: Facts, outside: int = 4) -> int:
    """Bytes that fit into the tunnel; `outside` is the IP version of the nodes' addresses."""
    return max(_MINIMUM_MTU, (facts.given_mtu or facts.mtu) - OVERHEAD[outside])


def encrypted_mtu(underlay: int, outside: int) -> int:
    """
    Bytes that fit into a WireGuard packet.

    Args:
        underlay: the MTU of the device towards other nodes.
        outside: the IP version of the nodes' addresses.
    """
    return max(_MINIMUM_MTU, underlay - _ENCRYPTION_OVERHEAD[outside])


class RouteTarget:
    """
    Our routes in the kernel of this node.

    A row whose node cannot be reached directly fails with ENETUNREACH, and says so.
    """

    def __init__(
        self,
        netlink: Netlink,
        tunnel: Tunnel,
        prepare: Callable[[], Awaitable[object]],
        wait_for: Callable[[Collection[RouteKey]], Awaitable[object]],
    ) -> None:
        """
        Args:
            prepare: has the rules and the device there, with whatever must be attached to that.
                Called before every comparison with the kernel, so also as soon as it has gone.
            wait_for: returns when there is whatever has to be there before these routes are.
        """
        self._netlink = netlink
        self._prepare = prepare
        self._wait_for = wait_for
        self._preparing = False
        self._heard: list[Change] = []  # while preparing
        self._devices = {tunnel.device}
        self._up: dict[str, int] = {}  # index of the devices that were up at the last comparison
        self._mtus: dict[int, int] = {}  # of all devices at the last comparison, by index
        self._held: set[tuple[int, IPAddress]] = set()  # this node's addresses, by device

    async def actual(self) -> Mapping[RouteKey, KernelRoute]:
        """The routes of ours that are there. Has the device made ready first."""
        self._preparing = True
        try:
            while not await self._is_prepared():
                pass  # somebody took away what had just been made ready
        finally:
            self._preparing = False
        return await self._netlink.routes.dump()

    async def apply(
        self, puts: Mapping[RouteKey, KernelRoute], deletes: Collection[RouteKey]
    ) -> Mapping[RouteKey, OSError]:
        """Add, replace and delete routes, in bulk."""
        await self._wait_for(puts.keys())
        self._devices.update(route.device for route in puts.values())
        return await self._netlink.routes.apply(puts, deletes)

    async def drift(self) -> AsyncIterator[Collection[RouteKey] | None]:
        """
        Routes that somebody else changed; None when a rule or a device of ours came or went, a
        rule that goes by marks or an address of this node did, or any device has another MTU or is
        made anew, which might be the one that ours follow.

        The kernel takes the routes of a device that goes down along without a word.
        """
        async for changes in self._netlink.monitor.changes():
            if self._preparing:
                self._heard += changes  # a comparison with everything follows
                continue
            if any(self._concerns_all(change) for change in changes):
                yield None
            elif keys := {c.key for c in changes if isinstance(c, RouteChange)}:
                yield keys

    async def _is_prepared(self) -> bool:
        """Prepare, and whether nothing was undone meanwhile, as far as the kernel has told."""
        self._netlink.monitor.drain()  # what has been told until now is seen
        self._heard.clear()
        self._held = await self._netlink.address_holders()
        await self._prepare()
        # What was heard up to here is told by what is read from here on, our own doing included.
        self._heard += self._netlink.monitor.drain()
        links = await self._netlink.ip.dump(self._netlink.ip.get_links)
        self._up = {link.get("ifname"): link["index"] for link in links if link["state"] == "up"}
        is_undone = any(self._is_undone(change) for change in self._heard)
        self._mtus = {link["index"]: link.get("mtu") for link in links}
        return not is_undone

    def _is_undone(self, change: Change) -> bool:
        match change:
            case Overrun() | RuleDeleted() | MarkRuleChange():
                return True
            case LinkChange(name, _, is_up) if name in self._devices and not is_up:
                return name not in self._up  # a device that is made starts down
            case LinkChange():
                return self._has_other_mtu(change)
            case AddressChange():
                return self._is_news(change)
            case _:
                return False

    def _concerns_all(self, change: Change) -> bool:
        match change:
            case Overrun() | RuleDeleted() | MarkRuleChange():
                return True
            case LinkChange(name, index, is_up) if name in self._devices:
                came_or_went = is_up != (self._up.get(name) == index)
                return came_or_went or self._has_other_mtu(change)
            case LinkChange():
                return self._has_other_mtu(change) or self._is_made_anew(change)
            case AddressChange():
                return self._is_news(change)
            case _:
                return False

    def _is_news(self, change: AddressChange) -> bool:
        """
        Take over a change; whether the node has come to have the address, or has it no more.

        A CNI may give the same one to the links of all pods.
        """
        had = any(ip == change.ip for _, ip in self._held)
        holder = (change.device, change.ip)
        if change.is_there:
            self._held.add(holder)
        else:
            self._held.discard(holder)
        return had != any(ip == change.ip for _, ip in self._held)

    def _is_made_anew(self, link: LinkChange) -> bool:
        """Whether the device that had this name was another: the underlay may have been it."""
        return link.is_up and self._up.get(link.name, link.index) != link.index

    def _has_other_mtu(self, link: LinkChange) -> bool:
        return self._mtus.get(link.index, link.mtu) != link.mtu

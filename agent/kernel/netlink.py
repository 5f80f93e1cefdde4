"""
The agent's devices, rules and settings in a node's network stack.

Everything is idempotent and adopts what a former agent left, since that is carrying traffic. All
of it is in the network namespace of the thread that opened the `Netlink`: an agent is started
inside its node's, and never looks into another.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Collection, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.lanes import LANES
from clustermesh.model import IPAddress, IPNetwork

from .facts import Facts, IPInterface, read_addresses, read_facts, read_holders
from .monitor import RouteMonitor
from .pyroute import NetlinkError, Rtnetlink, oserrors
from .route_messages import BACKSTOP_METRIC, POD_TABLE, PROTOCOL, TABLE, TABLES
from .routes import RouteSocket, has_ipv6
from .tunnel import TUNNELS, Tunnel, disable_gro, is_ours

log = logging.getLogger(__name__)

# STABLE API: what uninstall removes.
RULE_PRIORITY: Final = 195  # after `local` (0), before what the common CNIs add (512 and up)

_NO_ADDRESS: Final = IPv4Address("169.254.195.195")
_RT_SCOPE_HOST: Final = 254
_LOOKUP_TABLE: Final = 0x1000  # RTM_F_LOOKUP_TABLE: without it the answer is always `main`
_IFF_NOARP: Final = 0x80
_SYSCTLS: Final = Path("/proc/sys/net")


class TakenRoute(NamedTuple):
    """Where the kernel sends a packet."""

    device: str
    is_ours: bool  # from one of our tables


class _Rule(NamedTuple):
    """Which packets look up which of our tables."""

    table: int
    source: str = ""  # a network; empty: all packets
    length: int = 0  # of its prefix
    priority: int = RULE_PRIORITY


class Netlink:
    """What the agent needs of rtnetlink. Open it with `Netlink.open()`."""

    def __init__(
        self,
        ip: Rtnetlink,
        routes: RouteSocket,
        backstops: RouteSocket,
        monitor: RouteMonitor,
        sysctls: Path,
    ) -> None:
        self.ip = ip
        self.routes = routes
        self.backstops = backstops
        self.monitor = monitor
        self._sysctls = sysctls

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, sysctls: Path = _SYSCTLS) -> AsyncIterator[Netlink]:
        """
        Open the sockets for as long as the context lasts. Closing them changes nothing.

        Args:
            sysctls: where `/proc/sys/net` of this network namespace can be written.
        """
        routes, backstops = RouteSocket(), RouteSocket(BACKSTOP_METRIC)
        monitor = RouteMonitor(routes.port)
        try:
            async with Rtnetlink() as ip:
                yield cls(ip, routes, backstops, monitor, sysctls)
        finally:
            for opened in (routes, backstops, monitor):
                opened.close()

    async def facts(
        self, *, node_ips: Collection[IPAddress] = (), pod_cidrs: tuple[IPNetwork, ...] = ()
    ) -> Facts:
        """See `read_facts`."""
        return await read_facts(self.ip, node_ips=node_ips, pod_cidrs=pod_cidrs)

    async def addresses(self) -> list[tuple[str, IPInterface]]:
        """See `read_addresses`."""
        return await read_addresses(self.ip)

    async def address_holders(self) -> set[tuple[int, IPAddress]]:
        """See `read_holders`."""
        return await read_holders(self.ip)

    async def ensure_tunnel_device(self, mtu: int, tunnel: Tunnel) -> int:
        """
        Have the tunnel device, up and as it should be; return its interface index.

        A device with another port or mode is replaced, since the kernel changes neither; MTU and
        flags are put right in place.

        Args:
            mtu: of the device: that of the underlay less `OVERHEAD[4]`. Routes to nodes that are
                reached over IPv6 carry the smaller one.

        Raises:
            OSError: EEXIST when a device of this name is of another kind, EADDRINUSE when another
                tunnel device has the port, EOPNOTSUPP when the kernel does not have the protocol.
        """
        with oserrors(str(tunnel)):
            link = await self._link(tunnel.device)
            if link is not None and not tunnel.is_made_so(link):
                log.warning("%s has another port or mode: it is made anew", tunnel.device)
                await self.ip.link("del", index=link["index"])
                link = None
            if link is None:
                await self._make_tunnel_device(mtu, tunnel)
                link = await self._link(tunnel.device)
                assert link is not None
            index = int(link["index"])
            if link.get("mtu") != mtu:
                await self.ip.link("set", index=index, mtu=mtu)
            if not link["flags"] & _IFF_NOARP:
                await self.ip.link("set", index=index, flags=_IFF_NOARP, change=_IFF_NOARP)
            if link["state"] != "up":
                await self.ip.link("set", index=index, state="up")
        disable_gro(tunnel.device)
        await self._be_loose(tunnel.device, index)
        return index

    async def _make_tunnel_device(self, mtu: int, tunnel: Tunnel) -> None:
        try:
            await self.ip.link("add", **tunnel.attributes(mtu))
        except NetlinkError as error:
            if error.code != errno.EOPNOTSUPP:
                raise
            lacks = f"this kernel has no {tunnel.protocol}: use another --tunnel-protocol"
            raise NetlinkError(errno.EOPNOTSUPP, lacks) from error

    async def ensure_encrypted_device(self, device: str, mtu: int) -> None:
        """Have a WireGuard device that is there up, and with this MTU."""
        with oserrors(device):
            link = await self._link(device)
            if link is None:
                raise OSError(errno.ENODEV, f"there is no device {device}")
            if link.get("mtu") != mtu:
                await self.ip.link("set", index=link["index"], mtu=mtu)
            if link["state"] != "up":
                await self.ip.link("set", index=link["index"], state="up")
        await self._be_loose(device, link["index"])

    async def is_encrypted_device(self, device: str, mtu: int) -> bool:
        """Whether there is such a device, and it is as `ensure_encrypted_device` leaves it."""
        link = await self._link(device)
        return link is not None and link["state"] == "up" and link.get("mtu") == mtu

    async def _be_loose(self, device: str, index: int) -> None:
        """
        Take packets from other nodes' own addresses, though what goes to those leaves elsewhere.

        Loose, and not off, because the kernel takes the larger of the device's setting and that of
        `all`, which may be strict. To a device without an IPv4 address it is strict nevertheless:
        so it has one, of a scope that no packet is ever sent from.
        """
        with oserrors(device):
            host = {"address": str(_NO_ADDRESS), "prefixlen": 32, "scope": _RT_SCOPE_HOST}
            await self.ip.addr("replace", index=index, **host)
        self._write_sysctl(f"ipv4/conf/{device}/rp_filter", "2")

    async def has_kind(self, name: str, kind: str) -> bool:
        """Whether there is a device of that name and kind (tun, wireguard)."""
        link = await self._link(name)
        return link is not None and link.get(("linkinfo", "kind")) == kind

    async def remove_encrypted_devices(self) -> None:
        """Take the WireGuard devices away, if there are any."""
        for lane in LANES:
            await self.remove_device(lane.device)

    async def remove_device(self, name: str) -> None:
        """Remove a device, if there is one of that name."""
        link = await self._link(name)
        if link is not None:
            with oserrors(f"removing {name}"):
                await self.ip.link("del", index=link["index"])

    async def ensure_forwarding(self, underlay: str) -> None:
        """
        Let this node forward packets, as every CNI does.

        A host that forwards IPv6 stops listening to router advertisements, and would lose a default
        route that it has from one: where this is what switches forwarding on, `underlay` is told to
        go on listening.
        """
        self._write_sysctl("ipv4/ip_forward", "1")
        if has_ipv6() and self._read_sysctl("ipv6/conf/all/forwarding") != "1":
            if self._read_sysctl(f"ipv6/conf/{underlay}/accept_ra") == "1":
                self._write_sysctl(f"ipv6/conf/{underlay}/accept_ra", "2")
            self._write_sysctl("ipv6/conf/all/forwarding", "1")

    async def ensure_rules(self, pods: Iterable[IPNetwork] = ()) -> None:
        """
        Have our tables looked up, for both families. A rule of ours that says otherwise goes.

        Args:
            pods: the sources whose packets look up the one to nodes' addresses.
        """
        cidrs = list(pods)
        for family in _families():
            version = 4 if family == socket.AF_INET else 6
            mine = [cidr for cidr in cidrs if cidr.version == version]
            missing = dict.fromkeys([_Rule(TABLE), *map(_pod_rule, mine)])
            extra = []
            for found in await self._rules(family):
                if (rule := _parse_rule(found)) in missing:
                    del missing[rule]
                else:
                    extra.append(rule)
            for rule in missing:
                with oserrors(f"the rule for table {rule.table}"):
                    await self.ip.rule("add", family=family, **_rule_request(rule))
            for rule in extra:
                await self._delete_rule(family, rule)

    async def mark_rules(self, before: int | None = None) -> list[int]:
        """
        The priorities of the rules that go by the marks of packets, in order.

        Args:
            before: only those that are looked at before this priority.
        """
        found = []
        for family in _families():
            rules = await self.ip.dump(self.ip.get_rules, family=family)
            found += [
                int(rule.get("priority") or 0)
                for rule in rules
                if rule.get("fwmark") is not None or rule.get("fwmask") is not None
            ]
        return sorted({priority for priority in found if before is None or priority < before})

    async def route_to(self, source: IPAddress, target: IPAddress) -> TakenRoute:
        """
        The route that a packet of this node takes, by all rules and tables.

        Raises:
            OSError: ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL: there is none, or one that refuses.
        """
        with oserrors(f"the route to {target}"):
            request = {"dst": str(target), "src": str(source), "src_len": source.max_prefixlen}
            found = (await self.ip.route("get", **request, flags=_LOOKUP_TABLE))[0]
        device = found.get("oif")
        is_ours = found.get("table") in TABLES
        return TakenRoute(socket.if_indextoname(device) if device else "", is_ours)

    async def remove_everything(self) -> None:
        """
        Take away all that any agent of ours has put here, for uninstall. Idempotent.

        Forwarding stays on: others have come to need it.
        """
        for family in _families():
            for rule in await self._rules(family):
                await self._delete_rule(family, _parse_rule(rule))
        for ours in (self.routes, self.backstops):
            for error in (await ours.apply({}, list(await ours.dump()))).values():
                raise error
        await self.remove_tunnel_devices()
        await self.remove_encrypted_devices()

    async def remove_tunnel_devices(self, keep: Tunnel | None = None) -> None:
        """Take the tunnel devices away that are there, but for `keep`'s."""
        for tunnel in TUNNELS:
            link = await self._link(tunnel.device)
            if link is None or (keep and keep.device == tunnel.device):
                continue
            if is_ours(link, tunnel):
                with oserrors(f"removing {tunnel.device}"):
                    await self.ip.link("del", index=link["index"])

    async def _link(self, name: str) -> Any | None:
        index = device_index(name)
        if index is None:
            return None
        with oserrors(f"reading {name}"):
            return (await self.ip.link("get", index=index))[0]

    async def _rules(self, family: int) -> list[Any]:
        rules = await self.ip.dump(self.ip.get_rules, family=family)
        return [rule for rule in rules if rule.get("protocol") == PROTOCOL]

    def _read_sysctl(self, name: str) -> str:
        return (self._sysctls / name).read_text().strip()

    def _write_sysctl(self, name: str, value: str) -> None:
        """Only when it differs: the file may be read-only, with the right value in it."""
        if self._read_sysctl(name) != value:
            (self._sysctls / name).write_text(value)

    async def _delete_rule(self, family: int, rule: _Rule) -> None:
        with oserrors("removing a routing rule"):
            await self.ip.rule("del", family=family, **_rule_request(rule))


def device_index(name: str) -> int | None:
    """The interface index of a device in this thread's network namespace; None without it."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _pod_rule(pods: IPNetwork) -> _Rule:
    return _Rule(POD_TABLE, str(pods.network_address), pods.prefixlen)


def _parse_rule(rule: Any) -> _Rule:
    source = rule.get("src") or ""
    return _Rule(rule.get("table"), source, rule.get("src_len"), rule.get("priority") or 0)


def _rule_request(rule: _Rule) -> dict[str, Any]:
    request: dict[str, Any] = {"table": rule.table, "priority": rule.priority, "protocol": PROTOCOL}
    if rule.source:
        request |= {"src": rule.source, "src_len": rule.length}
    return request


def _families() -> tuple[int, ...]:
    return (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,)

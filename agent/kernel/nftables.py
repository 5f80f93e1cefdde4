"""
Our table in nftables, by which connections with the pods of other clusters keep their addresses.

A CNI masquerades what leaves its cluster, and some also what comes from elsewhere. Which source a
connection has is decided by the first chain of `postrouting` that gives it one, whether that is of
nftables or of either iptables. Ours comes first, and gives it the source that it has. To accept it
would not do: that ends one chain, and the next is asked. Where a destination was replaced, as a
proxy of services does, the decision is left to that proxy's rules.

The own addresses of other clusters' nodes are in sets of their own, which hold for this node's pods
alone: what else it sends there, from a container of somebody else's say, is none of our business.

Prefixes of one length are a hash set, in which the masked address is looked up. In interval sets
50,000 prefixes would take 15 times as long to add, and minutes to delete (nft 1.0.6), and a prefix
inside another would be refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NamedTuple

import msgspec

from agent.rows import RouteKey
from clustermesh.model import IPNetwork

from .route_messages import messages
from .routes import open_netlink

log = logging.getLogger(__name__)

# STABLE API: adopted by the next agent, and what uninstall removes.
NFT_TABLE: Final = "clustermesh"
_TABLE: Final = f"inet {NFT_TABLE}"
_CHAIN: Final = f"{_TABLE} sources"
_PRIORITY: Final = "srcnat - 50"  # kindnet is at srcnat - 10
_HOOK: Final = f"{{ type nat hook postrouting priority {_PRIORITY}; policy accept; }}"

_REMOVE: Final = f"add table {_TABLE}\ndelete table {_TABLE}\n"  # no error when it is not there

# linux/netlink.h, linux/netfilter/nfnetlink.h
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_RECEIVE: Final = 1 << 16


class _Shape(NamedTuple):
    """What the prefixes of a set have in common."""

    version: int
    length: int
    from_pods: bool

    @property
    def set(self) -> str:
        """The name of the set."""
        return f"{'nodes' if self.from_pods else 'pods'}{self.version}-{self.length}"

    def rules(self, pods: Iterable[IPNetwork]) -> Iterator[str]:
        """What keeps the source of a connection from and to such prefixes."""
        family, network = _FAMILIES[self.version]
        mask = network((0, self.length)).netmask
        own = [cidr for cidr in pods if cidr.version == self.version]
        for end, other in (("daddr", "saddr"), ("saddr", "daddr")):
            match = f"{family} {end} & {mask} @{self.set}"
            matches = [f"{family} {other} {cidr} {match}" for cidr in own]
            for one in matches if self.from_pods else [match]:
                yield f"add rule {_CHAIN} {one} snat {family} to {family} saddr\n"


_FAMILIES: Final[dict[int, tuple[str, type[IPv4Network | IPv6Network]]]] = {
    4: ("ip", IPv4Network),
    6: ("ip6", IPv6Network),
}


class _Set(msgspec.Struct):
    name: str
    elem: list[Any] = []  # addresses; what else it may be is nothing of ours

    def keys(self, shape: _Shape) -> frozenset[RouteKey]:
        """Raises ValueError: somebody has put in what is no prefix of that length."""
        addresses = (one for one in self.elem if isinstance(one, str))
        return frozenset(
            RouteKey(ip_network((ip, shape.length)), shape.from_pods) for ip in addresses
        )


class _Object(msgspec.Struct):
    set: _Set | None = None


class _Listing(msgspec.Struct):
    """What `nft -j list` prints, see libnftables-json(5)."""

    nftables: list[_Object]


_LISTING: Final = msgspec.json.Decoder(_Listing)
_NAME: Final = re.compile(r"(pods|nodes)([46])-(\d+)")


class Nftables:
    """
    The prefixes in our table, in the network namespace of the thread that runs the event loop.

    It is changed by the program `nft`, which knows what each kernel can do. Every method raises
    OSError: ENOENT when there is no such program, else with what the program said.
    """

    def __init__(self) -> None:
        self._shapes: frozenset[_Shape] = frozenset()  # those that have a set and rules
        self._pods: tuple[IPNetwork, ...] = ()
        self._ports: deque[int] = deque(maxlen=16)  # of the programs that wrote for us

    async def prepare(self, pods: Collection[IPNetwork] = ()) -> frozenset[RouteKey]:
        """
        Have the table with its chain, and return what is in it.

        The rules are written anew, in one transaction: so it need not be known what they were.

        Args:
            pods: the networks of this node's pods.
        """
        self._pods = tuple(pods)
        await self._write(f"add table {_TABLE}\n")
        listed = await self._nft("-j", "list", "table", *_TABLE.split())
        try:
            found = _found(listed)
            used = frozenset(shape for shape, keys in found.items() if keys)
            unused = "".join(f"delete set {_TABLE} {shape.set}\n" for shape in found.keys() - used)
            await self._write(_frame(used, self._pods) + unused)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOENT:
                raise
            # A chain or set that another release, or somebody else, made otherwise is not mended.
            log.warning("the table %s is made anew: %s", _TABLE, error)
            await self._write(_REMOVE + _frame((), self._pods))
            used, found = frozenset(), {}
        self._shapes = used
        return frozenset(key for shape in used for key in found[shape])

    async def apply(self, adds: Collection[RouteKey], deletes: Collection[RouteKey]) -> None:
        """Add and delete, all of them or none. Idempotent."""
        shapes = self._shapes | {_shape(key) for key in adds}
        known = [key for key in deletes if _shape(key) in shapes]
        # What is absent cannot be deleted: so it is added before.
        changes = [*_elements("add", [*adds, *known]), *_elements("delete", known)]
        if changes:
            frame = _frame(shapes, self._pods) if shapes != self._shapes else ""
            await self._write(frame + "".join(changes))
            self._shapes = shapes

    async def remove(self) -> None:
        """Take our table away. Without the program there is none to take away."""
        with contextlib.suppress(FileNotFoundError):
            await self._write(_REMOVE)

    async def changes(self) -> AsyncIterator[None]:
        """Each time that others may have changed our table. Ends where that cannot be told."""
        try:
            opened = open_netlink(1 << (_NFNLGRP_NFTABLES - 1), protocol=_NETLINK_NETFILTER)
        except OSError:
            return
        loop = asyncio.get_running_loop()
        with contextlib.closing(opened):
            while True:
                try:
                    heard = await loop.sock_recv(opened, _RECEIVE)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    yield
                else:
                    if self._is_by_others(heard):
                        yield

    def _is_by_others(self, heard: bytes) -> bool:
        ours = NFT_TABLE.encode() + b"\0"
        return ours in heard and any(
            message.port not in self._ports and ours in bytes(message.payload)
            for message in messages(heard)
        )

    async def _write(self, script: str) -> None:
        await self._nft("-f", "-", script=script)

    async def _nft(self, *arguments: str, script: str = "") -> bytes:
        try:
            running = await asyncio.create_subprocess_exec(
                "nft", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                "there is no program nft, so what a CNI masquerades stays masqueraded:"
                " install nftables",
            ) from None
        self._ports.append(running.pid)  # the kernel names a netlink socket after its process
        try:
            said, complaint = await running.communicate(script.encode())
        finally:
            # Cancelled: it has done all that it was told, or nothing.
            if running.returncode is None:
                running.kill()
                await running.wait()
        if running.returncode:
            raise OSError(errno.EINVAL, f"nft: {complaint.decode().partition(chr(10))[0]}")
        return said


def _found(listed: bytes) -> dict[_Shape, frozenset[RouteKey]]:
    """What is in each set of ours. Raises ValueError: something that we have not put there."""
    sets = {_shape_of(one.set.name): one.set for one in _LISTING.decode(listed).nftables if one.set}
    return {shape: one.keys(shape) for shape, one in sets.items() if shape}


def _frame(shapes: Iterable[_Shape], pods: Collection[IPNetwork]) -> str:
    """The chain and sets, without what is in the sets: all of it may be there already."""
    lines = [f"add table {_TABLE}\n", f"add chain {_CHAIN} {_HOOK}\n", f"flush chain {_CHAIN}\n"]
    lines.append(f"add rule {_CHAIN} ct status dnat return\n")
    for shape in sorted(shapes):
        kind = "ipv4_addr" if shape.version == 4 else "ipv6_addr"
        lines.append(f"add set {_TABLE} {shape.set} {{ type {kind}; }}\n")
        lines += shape.rules(pods)
    return "".join(lines)


def _elements(do: str, keys: Iterable[RouteKey]) -> Iterator[str]:
    """Lines that `add` or `delete` elements of sets."""
    by_shape: dict[_Shape, list[str]] = {}
    for key in keys:
        by_shape.setdefault(_shape(key), []).append(str(key.prefix.network_address))
    for shape, addresses in by_shape.items():
        yield f"{do} element {_TABLE} {shape.set} {{ {', '.join(addresses)} }}\n"


def _shape(key: RouteKey) -> _Shape:
    return _Shape(key.prefix.version, key.prefix.prefixlen, key.from_pods)


def _shape_of(name: str) -> _Shape | None:
    """That of a set's prefixes, if it is a set of ours."""
    found = _NAME.fullmatch(name)
    return _Shape(int(found[2]), int(found[3]), found[1] == "nodes") if found else None

"""WireGuard as the kernel has it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final

from agent.kernel.pyroute import NetlinkError, Rtnetlink
from agent.kernel.route_messages import NLMSG_DONE, NLMSG_ERROR, Message, messages, parse_error

from .batch import Change, put_each
from .driver import Device, PeerChange
from .messages import (
    in_messages,
    pack_configure,
    pack_find_family,
    pack_get,
    pack_peer,
    pack_peers,
    parse_device,
    parse_family,
)

_NETLINK_GENERIC: Final = 16
_RECEIVE: Final = 1 << 18
_BATCH: Final = 100
"""Peers in a request. Nobody else can change the network of this node while the kernel is at it."""


class KernelWireGuard:
    """See Driver. Used from one event loop, one call at a time."""

    name: Final = "kernel"

    def __init__(self, ip: Rtnetlink) -> None:
        """
        Args:
            ip: of the same network namespace; it makes devices.
        """
        self._ip = ip
        self._family: int | None = None
        self._sequence = 0
        self._lock = asyncio.Lock()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_GENERIC
        )
        self._socket.bind((0, 0))

    def close(self) -> None:
        """See Driver."""
        self._socket.close()

    async def create(self, device: str) -> None:
        """See Driver. Raises OSError: EOPNOTSUPP where the kernel has no WireGuard."""
        try:
            await self._ip.link("add", ifname=device, kind="wireguard")
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise OSError(error.code, f"{device}: {error.args[-1]}") from error
        await self.read(device)  # so that a device of this name which is none is found out

    async def read(self, device: str) -> Device:
        """See Driver."""
        family = await self._find_family()
        answer = await self._ask(partial(pack_get, family, device), device)
        payloads = [message.payload for message in answer]
        return await asyncio.to_thread(parse_device, payloads)  # a thousand peers take their time

    async def configure(self, device: str, private_key: bytes, port: int) -> None:
        """See Driver."""
        family = await self._find_family()
        await self._ask(partial(pack_configure, family, device, private_key, port), device)

    async def put_peers(
        self, device: str, puts: Mapping[str, PeerChange], deletes: Collection[str]
    ) -> Mapping[str, OSError]:
        """See Driver."""
        family = await self._find_family()

        async def put(batch: Sequence[Change]) -> None:
            pieces = (piece for key, change in batch for piece in pack_peer(key, change))
            for message in in_messages(pieces):
                await self._ask(partial(pack_peers, family, device, message), device)

        failed: dict[str, OSError] = {}
        rest = iter([*puts.items(), *((key, None) for key in deletes)])
        while batch := list(islice(rest, _BATCH)):
            failed |= await put_each(batch, put)
        return failed

    async def _find_family(self) -> int:
        if self._family is None:
            try:
                (answer,) = await self._ask(pack_find_family, "WireGuard")
            except FileNotFoundError as error:
                raise OSError(errno.EOPNOTSUPP, "this kernel has no WireGuard") from error
            self._family = parse_family(answer.payload)
        return self._family

    async def _ask(self, pack: Callable[[int], bytes], what: str) -> list[Message]:
        """
        What the kernel answers, up to its acknowledgement.

        Args:
            pack: the request, of its sequence number.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            sequence = self._sequence = (self._sequence + 1) & 0xFFFFFFFF
            # The kernel does all of it before this returns: a hundred peers take their time.
            await asyncio.to_thread(self._socket.send, pack(sequence))
            answer: list[Message] = []
            while True:
                for message in messages(await loop.sock_recv(self._socket, _RECEIVE)):
                    if message.sequence != sequence:
                        continue  # left over from a call that was cancelled
                    if message.type == NLMSG_ERROR:
                        if error := parse_error(message):
                            raise OSError(error.errno, f"{what}: {error.strerror}")
                        return answer
                    if message.type == NLMSG_DONE:
                        return answer
                    answer.append(message)

"""What the agent wants of WireGuard."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec

from agent.rows import UdpAddress
from clustermesh.model import IPNetwork


class PeerConfig(msgspec.Struct, frozen=True, gc=False):
    """A peer as it is to be."""

    endpoint: UdpAddress | None
    allowed_ips: tuple[IPNetwork, ...]  # sorted
    keepalive: int  # seconds; 0: none


class PeerChange(msgspec.Struct, frozen=True, gc=False):
    """
    What becomes of a peer, which is made if it is not there.

    While all prefixes of a peer are replaced some packets to it find none: so `only` is for when
    one is to be taken away.
    """

    endpoint: UdpAddress | None  # None: as it is
    allowed_ips: tuple[IPNetwork, ...]  # that it gets
    keepalive: int  # seconds; 0: none
    only: bool = False  # the prefixes that it has are taken away first


class PeerState(msgspec.Struct, frozen=True, gc=False):
    """A peer as it is."""

    config: PeerConfig
    handshake_at: float = 0.0  # seconds since the epoch; 0: never
    received: int = 0  # bytes
    sent: int = 0


class Device(msgspec.Struct, frozen=True):
    """A device as it is."""

    private_key: bytes
    port: int
    peers: Mapping[str, PeerState]  # by public key, base64

    def __repr__(self) -> str:
        return f"Device(port={self.port}, peers={len(self.peers)})"  # and no private key


class Driver(Protocol):
    """
    WireGuard in the network namespace of the thread that made this.

    Whatever fails is an OSError.
    """

    @property
    def name(self) -> str:
        """What `status` calls it."""

    def close(self) -> None:
        """Let go of what is open here; devices stay."""

    async def create(self, device: str) -> None:
        """Have a device of this name, down and without a key if it was not there."""

    async def read(self, device: str) -> Device:
        """How a device is. Raises OSError: ENODEV when there is none."""

    async def configure(self, device: str, private_key: bytes, port: int) -> None:
        """Give the device its key and port. Peers stay as they are."""

    async def put_peers(
        self,
        device: str,
        puts: Mapping[str, PeerChange],
        deletes: Collection[str],
    ) -> Mapping[str, OSError]:
        """
        Add and change peers, by public key, then delete others; the failures, each its own.

        A prefix that a peer is given is taken from whichever other peer of the device had it. Of
        peers that are not named nothing is changed.

        Raises OSError: the device as a whole does not take it.
        """

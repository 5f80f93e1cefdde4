"""
Lanes: how nodes stay encrypted while keys change.

A WireGuard device has one private key, and of its peers one owns a prefix. So a node that changes
its key needs a second device until all others know the new one, and so does a node whose peer
changes it. Every public key is therefore even or odd, by its first bit, and a node's next key is
always of the other kind. A lane joins a key of ours with a key of a peer:

    our key   peer's key   device    our port   the peer's port
    even      even         cm_wg00   base       base
    even      odd          cm_wg01   base + 1   base + 2
    odd       even         cm_wg10   base + 2   base + 1
    odd       odd          cm_wg11   base + 3   base + 3

The two ends of a lane see the same pair from either side. While there are several lanes to a peer
all of them are open at both ends, and each end sends on the newest that it has seen to work. First
keys are even: a mesh where nobody is changing keys has one device a node, and needs one port.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple

from clustermesh.errors import BadRowError

# STABLE API: devices are adopted by the next agent, and ports are agreed on with those of peers.
PREFIX: Final = "cm_wg"
PORTS: Final = 4

KEY_LENGTH: Final = 32  # bytes, of a private and of a public key


class Lane(NamedTuple):
    """Which key of ours and which of a peer: 0 for an even one, 1 for an odd one."""

    own: int
    peer: int

    @property
    def device(self) -> str:
        """The device that holds our key, with all peers that have such a key."""
        return f"{PREFIX}{self.own}{self.peer}"

    def port(self, base: int) -> int:
        """Where our end listens."""
        return base + 2 * self.own + self.peer

    def peer_port(self, base: int) -> int:
        """Where the other end listens."""
        return base + 2 * self.peer + self.own


LANES: Final = tuple(Lane(own, peer) for own in (0, 1) for peer in (0, 1))


def lane_of(device: str) -> Lane:
    """
    The lane of a device of ours.

    Raises:
        ValueError: it is none.
    """
    return next(lane for lane in LANES if lane.device == device)


def parity(public_key: str) -> int:
    """0 for an even key, 1 for an odd one. It has been checked to be a key."""
    return base64.b64decode(public_key)[0] & 1


def check_public_key(text: str) -> str:
    """
    `text`, if it is a WireGuard public key, in the one way to write it.

    Raises:
        BadRowError: it is not.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRowError("its WireGuard key is no base64") from None
    if len(raw) != KEY_LENGTH:
        raise BadRowError(f"its WireGuard key has {len(raw)} bytes, not {KEY_LENGTH}")
    if not any(raw) or base64.b64encode(raw).decode() != text:
        raise BadRowError("its WireGuard key is none")
    return text

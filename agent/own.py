"""What an agent knows of its own node: what it tells its apiserver, for the other clusters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Known(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What nobody but the agent of a node knows of it, named as in the spec of a MeshNode."""

    boot_id: str = msgspec.field(name="bootID", default="")
    wireguard_public_key: str = ""  # base64; empty without encryption
    # Where others probe it: in its pod CIDRs, one of each IP version that it has such an address of
    health_ips: tuple[str, ...] = msgspec.field(name="healthIPs", default=())


class OwnNode:
    """Where the parts of the agent put what they find out of the node, as they find it out."""

    def __init__(self, *, encrypts: bool, has_kernel: bool) -> None:
        """
        Args:
            encrypts: there will be a key.
            has_kernel: there will be addresses, if there are any. Until whatever there will be has
                been learned nothing is to be told, or an agent that restarts would take back what
                it told before.
        """
        self.known = Known(boot_id=_BOOT_ID.read_text().strip())
        self._changed = asyncio.Event()
        self._complete = asyncio.Event()
        self._has_key = not encrypts
        self._has_addresses = not has_kernel
        self._check_complete()

    def learn(self, known: Known) -> None:
        """Take over what holds from now on."""
        if known != self.known:
            self.known = known
            self._changed.set()
        self._has_key = self._has_key or bool(known.wireguard_public_key)
        self._check_complete()

    def learn_addresses(self, health_ips: tuple[str, ...]) -> None:
        """Take over at which addresses the node can be probed, which may be none."""
        self._has_addresses = True
        self.learn(msgspec.structs.replace(self.known, health_ips=health_ips))

    async def complete(self) -> None:
        """Wait until everything is known that is to be told."""
        await self._complete.wait()

    async def changed(self) -> None:
        """Wait until something has been learned since this was last called."""
        await self._changed.wait()
        self._changed.clear()

    def _check_complete(self) -> None:
        if self._has_key and self._has_addresses:
            self._complete.set()

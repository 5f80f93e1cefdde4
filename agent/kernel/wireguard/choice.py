"""Which WireGuard this node has, found out by trying."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Final

from agent.kernel.netlink import Netlink
from clustermesh.errors import UserError

from .driver import Driver
from .kernel import KernelWireGuard
from .userspace import PROGRAM, Userspace

log = logging.getLogger(__name__)

_WITHOUT: Final = {errno.EOPNOTSUPP, errno.ENODEV, errno.EPROTONOSUPPORT, errno.ENOENT}


async def choose(netlink: Netlink, sockets: Path, device: str) -> Driver:
    """
    The driver that can have `device`, which it has then: the kernel's own, else wireguard-go.

    A device that a wireguard-go process already has stays with it: it carries traffic.

    Raises:
        UserError: there is neither.
    """
    userspace = Userspace(sockets)
    if not await netlink.has_kind(device, "tun"):
        kernel = KernelWireGuard(netlink.ip)
        try:
            await kernel.create(device)
        except OSError as error:
            kernel.close()
            if error.errno not in _WITHOUT:
                raise
            log.info("the kernel has no WireGuard (%s), so %s is tried", error, PROGRAM)
        else:
            return kernel
    try:
        await userspace.create(device)
    except OSError as error:
        raise UserError(
            f"this node cannot encrypt: its kernel has no WireGuard, and {PROGRAM} does not"
            f" start: {error}",
            hint="modprobe wireguard, or apt-get install wireguard-go",
        ) from error
    return userspace

"""The programs that let nothing pass in plain text, on devices that are not ours: `guard.bpf.c`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from agent.kernel import links
from agent.kernel.bpf import Object
from agent.kernel.links import AttachType
from agent.kernel.pins import Limits, Pins
from clustermesh.model import ClusterId

_SIDES: Final = {"egress": AttachType.TCX_EGRESS, "ingress": AttachType.TCX_INGRESS}


class Guard:
    """What stands at the devices of the node. Part of a `Datapath`."""

    def __init__(
        self, path: Path, pins: Pins, limits: Limits, attached: set[str], own_cluster: ClusterId
    ) -> None:
        """
        Load the object `path`, with the ipcache that the tunnel's programs use too.

        Args:
            attached: the names of pins in use, which those of the guard are added to.

        Raises:
            OSError: the kernel does not take the programs.
        """
        settings = {"own_cluster_id": struct.pack("=I", own_cluster)}
        self._object = Object(path, pins.maps, settings=settings, max_entries=limits.sizes())
        self._pins = pins
        self._attached = attached

    def attach(self, ifindex: int, *, is_uplink: bool) -> None:
        """
        Drop what other clusters' pods send, or are sent, by this device in plain text. Idempotent.

        To be called once the ipcache is filled, for that is what it goes by. It is the first
        program on the device, since none after one that takes a packet sees it.

        Args:
            is_uplink: the device leads off this node, and none of its pods are behind it.

        Raises:
            OSError: ENODEV, there is no such device in this network namespace; EINVAL, the kernel
                has neither TCX nor clsact.
        """
        for side, type_ in _SIDES.items():
            program = self._object.program(f"{'uplink' if is_uplink else 'device'}_{side}")
            pin = _pin(side, ifindex)
            links.attach(program, ifindex, type_, self._pins.links / pin, first=True)
            self._attached.add(pin)

    def detach(self, ifindex: int) -> None:
        """Let it pass again, or forget a device that has gone. Idempotent."""
        for side in _SIDES:
            links.detach(self._pins.links / _pin(side, ifindex))
            self._attached.discard(_pin(side, ifindex))

    def close(self) -> None:
        """Let go of everything. What is attached goes on."""
        self._object.close()


def _pin(side: str, ifindex: int) -> str:
    return f"guard_{side}_{ifindex}"

"""The programs and maps of the fast path, on devices that are not ours: see `bpf/lib/fast.h`."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from agent.kernel import links
from agent.kernel.bpf import Object
from agent.kernel.layouts import Medium
from agent.kernel.links import AttachType
from agent.kernel.pins import Limits, Pins
from agent.kernel.tunnel import Tunnel, TunnelProtocol

FLOWS: Final = 131_072
"""Connections that it remembers, 14 MB. Those beyond go through the host's stack."""

_POD: Final = "pod_ingress"
_UNDERLAY: Final = "underlay_ingress"


class FastPath:
    """What pods send and get past the host's stack. Part of a `Datapath`."""

    def __init__(
        self, path: Path, pins: Pins, limits: Limits, attached: set[str], tunnel: Tunnel
    ) -> None:
        """
        Load the object `path`, with the maps that the tunnel's programs use too.

        Args:
            attached: the names of pins in use, which those of the fast path are added to.

        Raises:
            OSError: the kernel does not take the programs.
        """
        settings = {
            "tunnel_port": struct.pack("!H", tunnel.port),
            "is_geneve": bytes([tunnel.protocol is TunnelProtocol.GENEVE]),
        }
        self._object = Object(path, pins.maps, settings=settings, max_entries=limits.sizes())
        self.pods: Final = self._object.map("pods")
        self.flows: Final = self._object.map("flows")
        self._media = self._object.map("media")
        self._pins = pins
        self._attached = attached

    def set_media(self, media: Mapping[int, Medium]) -> None:
        """
        Say which devices may be used, and for what; those of an earlier agent until then.

        What the underlay brings is looked at from now on. Call it again when a device is anew.

        Raises:
            OSError: ENODEV, there is no such device in this network namespace.
        """
        keys, _ = self._media.read()
        for (index,) in struct.iter_unpack("=I", keys):
            if index not in media:
                self._media.delete(struct.pack("=I", index))
                self._detach(_UNDERLAY, index)
        for index, medium in media.items():
            if medium is Medium.UNDERLAY:
                self._attach(_UNDERLAY, index)
            self._media.update(struct.pack("=I", index), struct.pack("=I", medium))

    def attach_pod(self, ifindex: int) -> None:
        """
        Look at what the pod behind the veth `ifindex` sends. Idempotent.

        Raises:
            OSError: ENODEV, there is no such device in this network namespace.
        """
        self._attach(_POD, ifindex)

    def keep_pods(self, ports: Collection[int]) -> None:
        """Detach from all veths but `ports`; also what is left of those that are gone."""
        for pin in tuple(self._pins.links.iterdir()):
            number = pin.name.removeprefix(f"{_POD}-")
            if number.isdecimal() and int(number) not in ports:
                self._detach(_POD, int(number))

    @staticmethod
    def detach_all(pins: Pins) -> None:
        """Detach whatever agents have attached, this one and earlier ones."""
        for pin in tuple(pins.links.iterdir()):
            if pin.name.startswith((f"{_POD}-", f"{_UNDERLAY}-")):
                links.detach(pin)

    def close(self) -> None:
        """Let go of everything. What is attached goes on."""
        for map_ in (self.pods, self.flows, self._media):
            map_.close()
        self._object.close()

    def _attach(self, name: str, ifindex: int) -> None:
        pin = f"{name}-{ifindex}"
        program = self._object.program(name)
        links.attach(program, ifindex, AttachType.TCX_INGRESS, self._pins.links / pin)
        self._attached.add(pin)

    def _detach(self, name: str, ifindex: int) -> None:
        pin = f"{name}-{ifindex}"
        links.detach(self._pins.links / pin)
        self._attached.discard(pin)

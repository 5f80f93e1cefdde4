"""
What this node's kernel does for the mesh: load it, or adopt what an earlier agent left running.

    Datapath.open()     programs are loaded afresh; maps of the same schema come with their content
    (fill the maps)     at once right if adopted, else the reconcilers' first pass
    attach_sockets()    links that are there get the new programs in place, nothing is missed
    attach_tunnel()
    guard, fast         have programs of their own to attach
    settle()            older schemas and links that nobody claimed are removed

Until something is attached, whatever an earlier agent left goes on with its own maps. So a change
of a map's size or layout costs nothing but the time to fill a second set of maps.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.kernel import bpf, contents, links, pins
from agent.kernel.bpf import Object
from agent.kernel.fast_path import FLOWS, FastPath
from agent.kernel.guard import Guard
from agent.kernel.layouts import Direction, DropReason
from agent.kernel.links import AttachType
from agent.kernel.pins import Limits, Pins
from agent.kernel.tunnel import Tunnel
from clustermesh.errors import UserError
from clustermesh.model import ClusterId

_OBJECTS: Final = Path(__file__).with_name("objects")

_SOCKET_PROGRAMS: Final = {
    "connect4": AttachType.CONNECT4,
    "connect6": AttachType.CONNECT6,
    "sendmsg4": AttachType.SENDMSG4,
    "sendmsg6": AttachType.SENDMSG6,
    "recvmsg4": AttachType.RECVMSG4,
    "recvmsg6": AttachType.RECVMSG6,
    "getpeername4": AttachType.GETPEERNAME4,
    "getpeername6": AttachType.GETPEERNAME6,
}
_TUNNEL_PROGRAMS: Final = {
    "tunnel_egress": AttachType.TCX_EGRESS,
    "tunnel_ingress": AttachType.TCX_INGRESS,
}

_KEPT: Final = ("connections", "sessions", "drops", "counters", "flows", "fast_counters", "ipcache")
"""
Maps that a new schema with the same layouts shares. Programs fill them, and would forget. The
ipcache is filled by us: but until it is, nobody knows what may not pass in plain text.
"""

_SIZED: Final = {"flows": 4, "ipcache": 3}
"""Those of them whose size is a setting: where that is in the name of a schema."""


class Datapath:
    """
    The programs and maps of one node.

    Use one per bpffs, and stay in the node's network namespace: the kernel finds interfaces in that
    of the calling thread.
    """

    def __init__(self, pins_: Pins, limits: Limits, sockets: Object, tunnel: Object) -> None:
        """Use `open` instead."""
        self.adopted = pins_.is_current
        """Whether the maps hold what an earlier agent wrote, and are in use. If not, attach only
        when they are filled: what is attached now still uses full ones."""
        older = pins_.predecessor
        self.knows_addresses = self.adopted or (
            older is not None and _is_as_large("ipcache", older, pins_.maps)
        )
        """Whether the ipcache holds what an earlier agent wrote, be it in other maps than ours."""
        self.frontends: Final = sockets.map("frontends")
        self.backends: Final = sockets.map("backends")
        self.ipcache: Final = tunnel.map("ipcache")
        self._drops = sockets.map("drops")
        self._counters = tunnel.map("counters")
        self._pins = pins_
        self._limits = limits
        self._sockets = sockets
        self._tunnel = tunnel
        self._attached: set[str] = set()
        self.fast: FastPath | None = None
        self.guard: Guard | None = None

    @classmethod
    def open(
        cls,
        bpffs: Path,
        limits: Limits | None = None,
        *,
        max_connected_clusters: int = 255,
        tunnel: Tunnel | None = None,
        fast_path: bool = False,
        guarded: ClusterId | None = None,
    ) -> Datapath:
        """
        Load the programs, with the maps that are pinned in `bpffs` or new ones. Attaches nothing.

        Args:
            guarded: our own cluster, when nothing may pass in plain text to and from the others.

        Raises:
            UserError: not root, no bpffs, or a kernel that does not take the programs.
        """
        limits = limits or Limits()
        limits = replace(limits, flows=FLOWS) if fast_path else limits
        shift = 16 if max_connected_clusters == 255 else 15  # see model.identity_range
        pins_ = Pins(bpffs, limits)
        with _explained("load BPF programs", "Linux 5.15 or newer"), ExitStack() as undo:
            if not bpffs.is_dir() or not bpf.is_bpffs(bpffs):
                raise UserError(f"{bpffs} is no BPF file system", hint=f"mount -t bpf bpf {bpffs}")
            pins_.create()
            _share_kept_maps(pins_)
            loaded = []
            for name, settings in {
                "socket": {"has_set_retval": bytes([bpf.has_set_retval()])},
                "tunnel": {
                    "identity_shift": struct.pack("=I", shift),
                    "has_fast_path": bytes([fast_path]),
                },
            }.items():
                path = _OBJECTS / f"{name}.bpf.o"
                obj = Object(path, pins_.maps, settings=settings, max_entries=limits.sizes())
                undo.callback(obj.close)
                loaded.append(obj)
            datapath = cls(pins_, limits, *loaded)
            if fast_path:
                path, attached = _OBJECTS / "pod.bpf.o", datapath._attached
                datapath.fast = FastPath(path, pins_, limits, attached, tunnel or Tunnel())
                undo.callback(datapath.fast.close)
            if guarded is not None:
                path, attached = _OBJECTS / "guard.bpf.o", datapath._attached
                datapath.guard = Guard(path, pins_, limits, attached, guarded)
            undo.pop_all()
            return datapath

    def attach_sockets(self, cgroup: Path) -> None:
        """
        Balance the socket calls of every process in `cgroup` and below it.

        Raises:
            UserError: it is no cgroup2 directory.
        """
        hint = "findmnt -t cgroup2 lists where it is mounted"
        try:
            fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"there is no directory {cgroup}", hint=hint) from error
        try:
            with _explained("balance socket calls", "Linux 5.8 or newer"):
                for name, type_ in _SOCKET_PROGRAMS.items():
                    self._attach(self._sockets, name, fd, type_)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise UserError(f"{cgroup} is no cgroup2 directory", hint=hint) from error
            raise
        finally:
            os.close(fd)

    def attach_tunnel(self, ifindex: int) -> None:
        """
        Give the VXLAN device `ifindex` its tunnel keys, and check what comes out of it.

        Idempotent. Call it again when the device was made anew.

        Raises:
            UserError: the kernel has neither TCX nor clsact.
            OSError: ENODEV, there is no such device in this network namespace.
        """
        with _explained(
            "attach to the tunnel device",
            "TCX (Linux 6.6 or newer), or clsact (sch_ingress, cls_bpf)",
        ):
            for name, type_ in _TUNNEL_PROGRAMS.items():
                self._attach(self._tunnel, name, ifindex, type_)

    def guard_device(self, ifindex: int, *, is_uplink: bool) -> None:
        """
        See `Guard.attach`, without which no agent that encrypts may go on.

        Raises:
            UserError: the kernel has neither TCX nor clsact.
            OSError: ENODEV, there is no such device in this network namespace.
        """
        assert self.guard is not None
        with _explained(
            "guard the devices of this node",
            "TCX (Linux 6.6 or newer), or clsact (sch_ingress, cls_bpf)",
        ):
            self.guard.attach(ifindex, is_uplink=is_uplink)

    def detach_fast_path(self) -> None:
        """Have every packet pass the host's stack, whoever attached what led it around."""
        FastPath.detach_all(self._pins)

    def settle(self) -> None:
        """
        Remove what older agents left: maps of other schemas, and links not attached since `open`.

        To be called once everything is attached.
        """
        for pin in tuple(self._pins.links.iterdir()):
            if pin.name not in self._attached:
                links.detach(pin)
        self._pins.settle()

    def drops(self) -> Mapping[DropReason, int]:
        """Dropped packets and refused calls since the node started."""
        return contents.read_drops(self._drops)

    def counters(self) -> Mapping[Direction, contents.Traffic]:
        """What the tunnel carried since the node started."""
        return contents.read_counters(self._counters)

    def close(self) -> None:
        """Let go of everything. What is attached goes on."""
        for map_ in (self.frontends, self.backends, self.ipcache, self._drops, self._counters):
            map_.close()
        self._sockets.close()
        self._tunnel.close()
        for part in (self.guard, self.fast):
            if part is not None:
                part.close()

    @staticmethod
    def remove(bpffs: Path) -> None:
        """Detach and forget everything of ours in `bpffs`. Established connections stay."""
        pins.remove(bpffs)

    def _attach(self, obj: Object, name: str, target: int, type_: AttachType) -> None:
        links.attach(obj.program(name), target, type_, self._pins.links / name)
        self._attached.add(name)


def _share_kept_maps(pins_: Pins) -> None:
    """Pin those maps of the schema in use that the new one can go on with."""
    older = pins_.predecessor
    for name in _KEPT if older else ():
        if older is None or not _is_as_large(name, older, pins_.maps):
            continue
        if (older / name).exists() and not (pins_.maps / name).exists():
            fd = bpf.open_pin(older / name)
            try:
                bpf.pin_at(fd, pins_.maps / name)
            finally:
                os.close(fd)


def _is_as_large(map_: str, one: Path, other: Path) -> bool:
    at = _SIZED.get(map_)
    return at is None or one.name.split("-")[at] == other.name.split("-")[at]


@contextmanager
def _explained(what: str, needs: str) -> Iterator[None]:
    """Make of what the kernel refuses a UserError, if a user can do something about it."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            hint = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
            raise UserError(f"not allowed to {what}: {error}", hint=hint) from error
        if error.errno in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise UserError(f"this kernel cannot {what}: {error}", hint=needs) from error
        raise

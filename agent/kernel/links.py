"""
Where programs are attached: to cgroups and to interfaces, by links that are pinned.

Before Linux 6.6 an interface has no links (TCX), only filters (clsact). A filter is as good: the
kernel replaces its program atomically, and it outlives the agent and goes with its device. But it
has no pin, so a symbolic link that says where it is stands in the pin's place:

    links/connect4            a link
    links/tunnel_egress       a link; or, where the kernel has none, -> clsact/17/egress
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from agent.kernel._libbpf import ffi, lib
from agent.kernel.bpf import check, fail, open_pin, pin_at

_GONE: Final = {errno.ENODEV, errno.EINVAL, errno.ENOENT}
"""What the kernel says of a filter when its device, the device's clsact or itself is not there."""


class AttachType(enum.IntEnum):
    """Where a program is attached, numbered as the kernel does."""

    CONNECT4 = lib.BPF_CGROUP_INET4_CONNECT
    CONNECT6 = lib.BPF_CGROUP_INET6_CONNECT
    SENDMSG4 = lib.BPF_CGROUP_UDP4_SENDMSG
    SENDMSG6 = lib.BPF_CGROUP_UDP6_SENDMSG
    RECVMSG4 = lib.BPF_CGROUP_UDP4_RECVMSG
    RECVMSG6 = lib.BPF_CGROUP_UDP6_RECVMSG
    GETPEERNAME4 = lib.BPF_CGROUP_INET4_GETPEERNAME
    GETPEERNAME6 = lib.BPF_CGROUP_INET6_GETPEERNAME
    TCX_INGRESS = 46  # younger than the headers of Debian 12
    TCX_EGRESS = 47


def attach(program: int, target: int, type_: AttachType, pin: Path, *, first: bool = False) -> None:
    """
    Make `program` run at `target`, and remember that at `pin`, for `detach` and the next agent.

    What is there already gets the new program in place of its old one, with no call or packet in
    between that neither saw. If it belongs to another target, or to one that is gone, a new one
    takes its place.

    Args:
        target: file descriptor of a cgroup, or index of an interface *in the network namespace of
            the calling thread*.
        first: before all programs that are at an interface now. A filter of clsact takes its turn
            by priority: where interfaces have no links there is no first one.

    Raises:
        OSError: EBADF if it is no cgroup2, ENODEV if there is no such interface, EINVAL if the
            kernel knows neither `type_` nor, for an interface, clsact.
    """
    is_interface = type_ in {AttachType.TCX_INGRESS, AttachType.TCX_EGRESS}
    wanted = target if is_interface else os.fstat(target).st_ino  # a cgroup's id is its inode
    try:
        link = open_pin(pin)
    except FileNotFoundError:
        link = -1
    if link >= 0:
        try:
            if _link_target(link) == wanted:
                error = lib.bpf_link_update(link, program, ffi.NULL)
                if not error:
                    return
                if error != -errno.ENOLINK:  # the target went away just now
                    fail(-error, f"{pin.name}: update")
        finally:
            os.close(link)
    link = lib.cm_link_create(program, target, type_, first)
    if link == -errno.EINVAL and is_interface:
        attach_filter(program, target, type_, pin)
        return
    check(link, f"{pin.name}: attach")
    try:
        fresh = pin.with_name(f"{pin.name}-new")
        fresh.unlink(missing_ok=True)
        pin_at(link, fresh)
        fresh.replace(pin)  # the last pin of the old link goes, and the link with it
    finally:
        os.close(link)


def attach_filter(program: int, ifindex: int, type_: AttachType, pin: Path) -> None:
    """What `attach` does where interfaces have no links."""
    former, wanted = _Filter.at(pin), _Filter(ifindex, type_ is AttachType.TCX_EGRESS)
    check(lib.cm_filter_set(program, *wanted.place(pin)), f"{pin.name}: attach")
    fresh = pin.with_name(f"{pin.name}-new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(f"clsact/{ifindex}/{'egress' if wanted.egress else 'ingress'}")
    fresh.replace(pin)
    if former is not None and former != wanted:
        former.detach(pin)


def detach(pin: Path) -> None:
    """
    Detach what `attach` has put there, in the network namespace in which it did. Idempotent.

    A clsact without filters stays on the device: by now it may be in use by others.
    """
    filter_ = _Filter.at(pin)
    pin.unlink(missing_ok=True)
    if filter_ is not None:
        filter_.detach(pin)


@dataclass(frozen=True, slots=True)
class _Filter:
    """A program on one side of an interface. Several of ours differ by the names of their pins."""

    ifindex: int
    egress: bool

    @classmethod
    def at(cls, pin: Path) -> Self | None:
        """The one that `pin` stands for, if it does for one."""
        with contextlib.suppress(OSError):
            _, ifindex, side = pin.readlink().parts
            return cls(int(ifindex), side == "egress")
        return None

    def place(self, pin: Path) -> tuple[int, bool, int]:
        """What the kernel has it under: one of ours to a name."""
        return self.ifindex, self.egress, zlib.crc32(pin.name.encode())

    def detach(self, pin: Path) -> None:
        error = lib.cm_filter_delete(*self.place(pin))
        if error and -error not in _GONE:
            fail(-error, f"{pin.name}: detach")


def _link_target(link: int) -> int:
    type_, target = ffi.new("int *"), ffi.new("uint64_t *")
    check(lib.cm_link_target(link, type_, target), "link info")
    return int(target[0])

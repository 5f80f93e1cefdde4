"""
Network namespaces and mounts: the few system calls that Python 3.11 does not have.

A namespace belongs to a thread. So whatever is to happen inside one happens in a thread that is
made for it and ends with it, and the caller can never be left in the wrong place, where an
interface index means another device: perhaps the machine's own.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (*(ctypes.c_char_p,) * 3, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def run_in_new(function: Callable[[], T], keep: Path | None = None) -> T:
    """
    What `function` returns (or raises), run in a thread in a network namespace of its own.

    Args:
        keep: a file to mount the namespace on. Without it, the namespace ends with the last
            process, socket and device link that is in it.
    """

    def enter() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "a new network namespace")
        if keep is not None:
            keep.touch()
            mount("/proc/thread-self/ns/net", keep, flags=_MS_BIND)

    return _in_thread(enter, function)


def run_inside(namespace: Path, function: Callable[[], T]) -> T:
    """What `function` returns (or raises), run in a thread inside the namespace of that file."""

    def enter() -> None:
        with namespace.open("rb") as opened:
            _check(_libc.setns(opened.fileno(), _CLONE_NEWNET), namespace)

    return _in_thread(enter, function)


def mount(source: str, target: Path, kind: str = "none", flags: int = 0) -> None:
    """Attach `source` to the tree at `target`."""
    arguments = (source.encode(), bytes(target), kind.encode(), flags, None)
    _check(_libc.mount(*arguments), target)


def unmount(target: Path) -> None:
    """Take the topmost mount off `target`, also while somebody is using it."""
    _check(_libc.umount2(bytes(target), _MNT_DETACH), target)


def mounts_below(directory: Path) -> list[Path]:
    """The mount points below `directory`, the innermost first, twice if mounted on twice."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    return [point for point in reversed(points) if directory in point.parents]


def _in_thread(enter: Callable[[], None], function: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter()
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            errors.append(error)

    thread = threading.Thread(target=body, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _check(result: int, what: object) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(what))

"""
What there is of a sandbox on this machine, and taking it away.

Nothing here trusts a list that somebody kept. Everything of a sandbox is found by its name: its
processes by their cgroup, its namespaces and file systems by their mount points, the rest by its
directory. So it does not matter when and how whoever made it was stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.errors import UserError

from . import process
from .model import CGROUP, ROOT, parse_name
from .namespace import mounts_below, unmount

_KILL_SECONDS: Final = 10.0
_TRIES: Final = 10


class Remains(msgspec.Struct, frozen=True):
    """All that is left of a sandbox."""

    processes: tuple[int, ...]
    mounts: tuple[Path, ...]  # namespaces among them
    cgroups: tuple[Path, ...]  # the innermost first
    directory: Path | None

    def __bool__(self) -> bool:
        return bool(self.processes or self.mounts or self.cgroups or self.directory)


def remains(name: str, root: Path = ROOT) -> Remains:
    """What there is of the sandbox of that name."""
    directory = root / parse_name(name)
    top = cgroup_mount() / CGROUP / name
    cgroups = sorted((Path(path) for path, _, _ in os.walk(top)), reverse=True)
    recorded = (process.read(file) for file in directory.rglob("*.pid"))
    pids = {found.pid for found in recorded if found is not None}
    for cgroup in cgroups:
        with contextlib.suppress(FileNotFoundError):
            pids.update(map(int, (cgroup / "cgroup.procs").read_text().split()))
    return Remains(
        processes=tuple(sorted(pids)),
        mounts=tuple(mounts_below(directory)),
        cgroups=tuple(cgroups),
        directory=directory if directory.exists() else None,
    )


def names(root: Path = ROOT) -> list[str]:
    """The sandboxes of which there is anything: the directory comes first and goes last."""
    return sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []


def down(name: str, root: Path = ROOT) -> None:
    """
    Take away everything of the sandbox of that name. Idempotent.

    Raises:
        OSError: ETIMEDOUT when a process does not even die of SIGKILL.
    """
    directory = root / parse_name(name)
    top = cgroup_mount() / CGROUP / name
    for file in directory.rglob("*.pid"):
        found = process.read(file)
        if found is not None:
            process.stop(found, signal.SIGKILL, timeout=_KILL_SECONDS)
    _remove_cgroups(top)
    for point in mounts_below(directory):
        unmount(point)
    if directory.exists():
        shutil.rmtree(directory)
    for parent in (top.parent, root):
        with contextlib.suppress(OSError):  # another sandbox is still there
            parent.rmdir()


def cgroup_mount() -> Path:
    """
    Where cgroup2 is mounted.

    Raises:
        UserError: nowhere.
    """
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(point)
    raise UserError("cgroup2 is not mounted", hint="mount -t cgroup2 none /sys/fs/cgroup")


def _remove_cgroups(top: Path) -> None:
    """Kill all that is in `top` and below, and remove it."""
    for tries_left in reversed(range(_TRIES)):
        _kill_all(top)
        try:
            for path, _, _ in os.walk(top, topdown=False):
                Path(path).rmdir()
        except OSError as error:  # a process that was just being started has come in
            if error.errno != errno.EBUSY or not tries_left:
                raise
        else:
            return


def _kill_all(cgroup: Path) -> None:
    """Kill every process of `cgroup` and below, and wait until none is left."""
    if not cgroup.is_dir():
        return
    deadline = time.monotonic() + _KILL_SECONDS
    with (cgroup / "cgroup.events").open() as events:
        watch = select.poll()
        watch.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes in {cgroup} do not die")
            try:
                (cgroup / "cgroup.kill").write_text("1")
            except FileNotFoundError:  # a kernel before 5.14
                _kill_each(cgroup)
            watch.poll(100)
            events.seek(0)


def _kill_each(cgroup: Path) -> None:
    for path, _, _ in os.walk(cgroup):
        for pid in (Path(path) / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

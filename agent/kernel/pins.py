"""
Where things are pinned, so that they outlive the agent:

    <bpffs>/clustermesh/links/connect4 …              what is attached, whatever the schema
    <bpffs>/clustermesh/v2-65536-1048576-512000-1/…   the maps of a schema
    <bpffs>/clustermesh/current                       symbolic link: the schema of what is attached

A schema is the layouts of the structs and the sizes that are settings. The kernel reuses a pinned
map only if both are as before, so another schema gets other maps. Links are the same in every
schema: replacing their programs is what moves the traffic from old maps to new ones, at one blow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from agent.kernel import links

# STABLE API: pins are found again by the next version of the agent, and by `clustermesh show maps`.
SCHEMA: Final = 2
"""Counted up with every change of a struct in `bpf/lib/types.h`."""

_ROOT: Final = "clustermesh"
_CURRENT: Final = "current"
_LINKS: Final = "links"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many rows the maps can hold. Memory is taken by use, but for 16 bytes to a backend."""

    frontends: int = 65_536
    backends: int = 1_048_576  # while a service changes, its old and its new ones
    ipcache: int = 512_000
    flows: int = 1  # an LRU map takes all its memory at once: for a fast path that there is not

    def sizes(self) -> dict[str, int]:
        """By name of the map."""
        return asdict(self)


class Pins:
    """The paths below one bpffs, for one schema."""

    def __init__(self, bpffs: Path, limits: Limits) -> None:
        self.root = bpffs / _ROOT
        self.links = self.root / _LINKS
        self.maps = self.root / "-".join(map(str, (f"v{SCHEMA}", *limits.sizes().values())))

    def create(self) -> None:
        """Make the directories."""
        self.links.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.maps.mkdir(mode=0o700, exist_ok=True)

    @property
    def is_current(self) -> bool:
        """Whether what is attached uses these maps."""
        return current(self.root.parent) == self.maps

    @property
    def predecessor(self) -> Path | None:
        """The maps of what is attached, if they differ from these in size only."""
        path = current(self.root.parent)
        if path is None or path == self.maps or not path.name.startswith(f"v{SCHEMA}-"):
            return None
        return path

    def settle(self) -> None:
        """Make this schema the current one and remove the others."""
        fresh = self.root / f"{_CURRENT}-new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.maps.name)
        fresh.replace(self.root / _CURRENT)
        for path in tuple(self.root.iterdir()):
            if path.is_dir() and not path.is_symlink() and path not in {self.links, self.maps}:
                shutil.rmtree(path)


def current(bpffs: Path) -> Path | None:
    """The map directory of what is attached; None if there is none."""
    root = bpffs / _ROOT
    with contextlib.suppress(OSError):
        return root / os.readlink(root / _CURRENT)  # noqa: PTH115 - the name, not the path
    return None


def remove(bpffs: Path) -> None:
    """
    Remove every pin of ours. Links detach; the kernel frees maps and programs with the last user.

    Links go first: without programs nobody sees the maps go.
    """
    root = bpffs / _ROOT
    if root.is_dir():
        if (root / _LINKS).is_dir():
            for pin in tuple((root / _LINKS).iterdir()):
                links.detach(pin)
        shutil.rmtree(root)

"""
The directory that says which clusters are connected: one etcd client file for each, named as it.

Kubernetes swaps a mounted Secret by a symbolic link, NFS sends no notifications, and certificates
beside the files change too: so it is looked at every half second, which costs microseconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from .model import CLUSTER_NAME, CLUSTER_NAME_MAX, ClusterName

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 0.5  # seconds


class PeerFile(NamedTuple):
    """A file, in the state that it was in. Two states of a file are not equal."""

    path: Path
    inode: int
    size: int
    modified: int  # nanoseconds


async def peer_files(
    directory: Path, own: ClusterName
) -> AsyncIterator[Mapping[ClusterName, PeerFile]]:
    """
    The files of all connected clusters: now, and whenever one appears, changes or goes away.

    Files whose names are no cluster's, or our own, are passed over: certificates lie here too. A
    directory that is not there yet has no files. One that cannot be read any more keeps what it
    had: being unmounted is no order to leave. One that cannot be read at first is waited for.
    """
    last: Mapping[ClusterName, PeerFile] | None = None
    unreadable = False
    while True:
        try:
            found = await asyncio.to_thread(_look, directory, own)
        except OSError as error:
            if last is None and isinstance(error, FileNotFoundError):
                last = {}
                yield last
            if not unreadable and last is None:
                log.warning("%s: %s; nothing is read before this is", directory, error.strerror)
            elif not unreadable and last:
                log.warning("%s: %s; the clusters stay as they are", directory, error.strerror)
            unreadable = True
        else:
            unreadable = False
            if found != last:
                last = found
                yield found
        await asyncio.sleep(LOOK_EVERY)


def _look(directory: Path, own: ClusterName) -> dict[ClusterName, PeerFile]:
    found = {}
    for path in sorted(directory.iterdir()):
        name = ClusterName(path.name)
        if len(name) > CLUSTER_NAME_MAX or not CLUSTER_NAME.fullmatch(name) or name == own:
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # a link that is being swapped
        if path.is_file():
            found[name] = PeerFile(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found

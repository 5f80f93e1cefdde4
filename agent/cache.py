"""
What a cluster said last, on disk: an agent that restarts while a peer is away keeps its backends.

One file a cluster, replaced as a whole. It holds the rows as they were in etcd, and they are
decoded with the same distrust. A cache is never complete: only the cluster itself can say that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from clustermesh.files import replace_file
from clustermesh.model import ClusterId, ClusterName

log = logging.getLogger(__name__)


class Snapshot(msgspec.Struct, frozen=True):
    """The rows of one cluster: key and value as in etcd, by the name of their kind."""

    id: ClusterId
    rows: Mapping[str, Sequence[tuple[str, bytes]]]


class Cache:
    """The snapshots of all clusters, in a directory. Failing to keep one is only a warning."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._warned = False

    def load(self, cluster: ClusterName) -> Snapshot | None:
        """What was saved last; None if nothing was, or it cannot be read."""
        path = self._path(cluster)
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Snapshot)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: the last known state of %s is not used: %s", path, cluster, error)
            return None

    def save(self, cluster: ClusterName, snapshot: Snapshot) -> None:
        """Replace what was saved. May be called from another thread, one at a time."""
        path = self._path(cluster)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            replace_file(path, msgspec.msgpack.encode(snapshot))
        except OSError as error:
            if not self._warned:
                log.warning("%s: the last known state cannot be kept: %s", path, error)
            self._warned = True
        else:
            self._warned = False

    def forget(self, cluster: ClusterName) -> None:
        """The cluster has left the mesh."""
        try:
            self._path(cluster).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be removed: %s", self._path(cluster), error)

    def _path(self, cluster: ClusterName) -> Path:
        return self._directory / f"{cluster}.cache"

from __future__ import annotations

from typing import Final

from clustermesh.model import ClusterConfig, ClusterId, ClusterName


class RefusedError(Exception):
    """A cluster is not who it should be; the message says why."""


class ClusterIds:
    """Which cluster has which id. The first that has one keeps it while it is connected."""

    def __init__(self, own: ClusterName, own_id: ClusterId, max_connected_clusters: int) -> None:
        self.own: Final = own
        self.max_connected_clusters: Final = max_connected_clusters
        self._names: dict[ClusterId, ClusterName] = {own_id: own}

    def claim(self, cluster: ClusterName, config: ClusterConfig) -> None:
        """
        Let `cluster` have the id of its config.

        Raises:
            RefusedError: another one has it, or the clusters disagree about how many there can be.
        """
        if config.max_connected_clusters != self.max_connected_clusters:
            raise RefusedError(
                f"it allows {config.max_connected_clusters} clusters, and we "
                f"{self.max_connected_clusters}: --max-connected-clusters must be the same in all"
            )
        holder = self._names.get(config.id, cluster)
        if holder != cluster:
            whose = "our own" if holder == self.own else f"that of {holder}"
            raise RefusedError(f"its cluster id {config.id} is {whose}: give it another one")
        if cluster == self.own and config.id not in self._names:
            raise RefusedError(f"our own etcd says that our cluster id is {config.id}")
        self.release(cluster)
        self._names[config.id] = cluster

    def release(self, cluster: ClusterName) -> None:
        """`cluster` has left."""
        if cluster != self.own:
            self._names = {i: name for i, name in self._names.items() if name != cluster}

"""How the ways are, in numbers: by cluster, since a node's own would be too many for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clustermesh.daemon.prometheus import Collector, GaugeMetricFamily, Metric
from clustermesh.status import PathsStatus


class PathMetrics(Collector):
    """What Prometheus reads."""

    def __init__(self, status: Callable[[], PathsStatus]) -> None:
        """
        Args:
            status: is called in a thread of its own.
        """
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """What Prometheus calls a scrape."""
        states = GaugeMetricFamily(
            "clustermesh_paths",
            "Ways to the nodes of a cluster, by how they are; `/tables/paths` says why.",
            labels=["cluster", "state"],
        )
        loss = GaugeMetricFamily(
            "clustermesh_path_loss_ratio", "Of the last probes of a cluster.", labels=["cluster"]
        )
        round_trip = GaugeMetricFamily(
            "clustermesh_path_round_trip_seconds",
            "The median of the ways to a cluster.",
            labels=["cluster"],
        )
        for one in self._status().clusters:
            for state in ("well", "failing", "not_probed"):
                states.add_metric([one.cluster, state], getattr(one, state))
            loss.add_metric([one.cluster], one.loss)
            if one.round_trip is not None:
                round_trip.add_metric([one.cluster], one.round_trip)
        yield from (states, loss, round_trip)

"""What the BPF programs dropped, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clustermesh.daemon.prometheus import Collector, CounterMetricFamily, Metric
from clustermesh.status import Datapath

from .kernel.layouts import DropReason


class DatapathMetrics(Collector):
    """What Prometheus reads."""

    def __init__(self, status: Callable[[], Datapath]) -> None:
        """
        Args:
            status: is called in a thread of its own.
        """
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """What Prometheus calls a scrape."""
        dropped = CounterMetricFamily(
            "clustermesh_dropped_packets",
            "Packets that were not let through, and calls that were refused, by reason.",
            labels=["reason"],
        )
        drops = self._status().drops
        for reason in DropReason:  # also those of which there are none: a rate needs a first value
            dropped.add_metric([reason.name], drops.get(reason.name, 0))
        yield dropped

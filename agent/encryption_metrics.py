"""How this node encrypts, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clustermesh.daemon.prometheus import Collector, GaugeMetricFamily, Metric
from clustermesh.status import EncryptionStatus


class EncryptionMetrics(Collector):
    """What Prometheus reads."""

    def __init__(self, status: Callable[[], EncryptionStatus]) -> None:
        """
        Args:
            status: is called in a thread of its own.
        """
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """What Prometheus calls a scrape."""
        said = self._status()
        by = GaugeMetricFamily(
            "clustermesh_encryption",
            "1 for what encrypts: the kernel's WireGuard, or wireguard-go, which is slow.",
            labels=["type", "driver"],
        )
        by.add_metric([said.type, said.driver], 1)
        yield by
        yield GaugeMetricFamily(
            "clustermesh_encryption_peers", "Nodes that are encrypted to.", value=said.peers
        )
        yield GaugeMetricFamily(
            "clustermesh_encryption_peers_answered",
            "Nodes of those that have ever answered.",
            value=said.answered,
        )
        yield GaugeMetricFamily(
            "clustermesh_encryption_key_age_seconds",
            "How long ago this node made its key.",
            value=said.key_age,
        )
        yield GaugeMetricFamily(
            "clustermesh_encryption_key_changing",
            "1 while this node changes its key: for longer than minutes if somebody is waited for.",
            value=bool(said.waits_for),
        )

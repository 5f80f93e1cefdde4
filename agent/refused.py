"""What nodes of other clusters claim and do not get: for the status, and for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from clustermesh.daemon.prometheus import Collector, GaugeMetricFamily, Metric
from clustermesh.state import Table

from .rows import Cidr
from .rules.cidrs import CidrKey


def refused(cidrs: Table[CidrKey, Cidr]) -> list[str]:
    """A line for each claim that is not used, with its reason. May be called in any thread."""
    return sorted(f"{key} is refused: {c.refused or c.closed}" for key, c in _refused(cidrs))


class RefusedMetrics(Collector):
    """What Prometheus reads."""

    def __init__(self, cidrs: Table[CidrKey, Cidr]) -> None:
        self._cidrs = cidrs

    def collect(self) -> Iterator[Metric]:
        """What Prometheus calls a scrape, in a thread of its own."""
        family = GaugeMetricFamily(
            "clustermesh_refused_cidrs",
            "Addresses that nodes of a cluster claim and that are not used: see the status.",
            labels=["cluster"],
        )
        counts = Counter({key.cluster: 0 for key in tuple(self._cidrs.keys())})
        counts.update(key.cluster for key, _ in _refused(self._cidrs))
        for cluster, count in sorted(counts.items()):
            family.add_metric([cluster], count)
        yield family


def _refused(cidrs: Table[CidrKey, Cidr]) -> Iterator[tuple[CidrKey, Cidr]]:
    for key in tuple(cidrs.keys()):
        claim = cidrs.first(key)
        if claim and (claim.refused or (claim.closed and not claim.is_node)):
            yield key, claim

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clustermesh.status import Remote, RemoteState

from .daemon import Daemon, ReconcilerCounts
from .prometheus import (
    Collector,
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    generate_latest,
)


@dataclass(frozen=True, slots=True, eq=False)  # a registry keeps it in a dict
class Snapshot(Collector):
    """
    The numbers of a daemon at one moment.

    Taken in the event loop, where it costs little; made into text in a thread, where 511 clusters
    may take their 0.3 s.
    """

    name: str
    version: str
    ready: bool
    rows: dict[str, int]
    reconcilers: dict[str, list[ReconcilerCounts]]
    remotes: list[Remote]
    parts: CollectorRegistry

    @classmethod
    def take(cls, daemon: Daemon) -> Snapshot:
        """What holds now."""
        return cls(
            name=daemon.name,
            version=daemon.version,
            ready=not daemon.reasons(),
            rows={name: len(shown.table) for name, shown in daemon.tables.items()},
            reconcilers={n: counts for n, s in daemon.tables.items() if (counts := s.counts())},
            remotes=daemon.remotes(),
            parts=daemon.metrics,
        )

    def render(self) -> bytes:
        """The Prometheus text format; may run in any thread."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry) + generate_latest(self.parts)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus calls a scrape."""
        yield InfoMetricFamily(
            "clustermesh_build",
            "Which daemon of which version this is.",
            value={"daemon": self.name, "version": self.version},
        )
        yield GaugeMetricFamily(
            "clustermesh_ready", "Whether the daemon is ready.", value=float(self.ready)
        )
        yield _gauge("clustermesh_table_rows", "Rows in a table.", "table", self.rows.items())
        yield _gauge(
            "clustermesh_reconciler_failures",
            "Rows that are not in their place; `/tables/<table>` says which and why.",
            "table",
            ((t, sum(c.failing for c in counts)) for t, counts in self.reconcilers.items()),
        )
        repairs = CounterMetricFamily(
            "clustermesh_reconciler_repairs",
            "Rows that somebody else had changed, and that were put right.",
            labels=["table"],
        )
        for table, counts in self.reconcilers.items():
            repairs.add_metric([table], sum(c.repairs for c in counts))
        yield repairs
        yield from self._remotes()

    def _remotes(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "clustermesh_remote_state",
            "1 for the state that the connection to a cluster is in.",
            labels=["cluster", "state"],
        )
        rows = GaugeMetricFamily(
            "clustermesh_remote_rows",
            "What is known of a cluster.",
            labels=["cluster", "table"],
        )
        bad = GaugeMetricFamily(
            "clustermesh_remote_bad_rows",
            "Rows of a cluster that are skipped; `/status` names the last one.",
            labels=["cluster"],
        )
        for remote in self.remotes:
            for state in RemoteState:
                states.add_metric([remote.cluster, state], float(remote.state is state))
            for table in ("nodes", "services", "identities", "endpoints"):
                rows.add_metric([remote.cluster, table], getattr(remote, table))
            bad.add_metric([remote.cluster], remote.bad_rows)
        yield from (states, rows, bad)


def _gauge(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values:
        family.add_metric([value], number)
    return family

"""prometheus_client without the web servers that it could be served by: serve.py is ours."""

from __future__ import annotations

from clustermesh.imports import hollow

with hollow("http.server", "socketserver", "wsgiref", "wsgiref.simple_server"):
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Metric,
        ProcessCollector,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
    from prometheus_client.registry import Collector

__all__ = [
    "CONTENT_TYPE_LATEST",
    "Collector",
    "CollectorRegistry",
    "CounterMetricFamily",
    "GaugeMetricFamily",
    "InfoMetricFamily",
    "Metric",
    "ProcessCollector",
    "generate_latest",
]

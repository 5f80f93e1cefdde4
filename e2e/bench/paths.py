"""Latency and throughput between pods of two clusters, against pods of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from agent.kernel import inspect
from clustermesh.model import IPAddress

from .bed import Bed, bed, until
from .measurement import Bars, Goal, Measurement, Plot, Say, Table
from .traffic import (
    PROTOCOLS,
    Latencies,
    Lengths,
    Rates,
    gigabits,
    latencies,
    latency_ratio,
    microseconds,
    rate_ratio,
    rates,
    servers,
)

_PATHS: Final = {
    f"{routing}{', fast path' if fast else ''}": (routing, fast)
    for routing in ("tunnel", "direct")
    for fast in (False, True)
}
_GOALS: Final = {"tunnel, fast path": (1.10, 0.9), "direct, fast path": (1.05, 0.95)}
"""Latency at most, and throughput at least, against plain routes."""

_TEXT: Final = """\
From a pod to a pod on another node, with the same number of hops: by the plain routes that a CNI
keeps between the nodes of one cluster, and by the mesh to the node of another cluster. Both take
turns: message by message for the latency (64 bytes there and back, on one connection), run by run
for the throughput (iperf3, one TCP stream). All of it is one machine, so throughput is CPU time: a
tunnel costs what its headers and a smaller MTU (1450) cost. With a fast path (`--fast-path on`)
connections go past the host's stack: see [the data path](datapath.md).
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """One sandbox for each path; each has plain routes to compare with."""
    lengths = Lengths(500, 1, 1) if quick else Lengths(10_000, 15, 1)
    latency: dict[str, Latencies] = {}
    rate: dict[str, Rates] = {}
    for path, (routing, fast) in _PATHS.items():
        settings = [f"fast-path={'on' if fast else 'off'}"]
        with bed(f"paths-{routing}", nodes=2, routing=routing, agent=settings) as sandbox:
            client = sandbox.node(1).pods[0]
            pods = {"plain": sandbox.node(1, 2).pods[0], "mesh": sandbox.node(2, 1).pods[0]}
            addresses = {name: str(pod.addresses.v4) for name, pod in pods.items()}
            with servers(sandbox, *pods.values()):
                if fast:
                    _make_known(sandbox, addresses)
                latency[path] = latencies(sandbox, client, addresses, lengths)
                rate[path] = rates(sandbox, client, addresses, lengths)
        slower, more = _slower(latency[path], "TCP"), _more(rate[path])
        say(f"{path}: {slower:.2f} times the latency, {more:.2f} times the throughput")

    return Measurement(
        title="Between clusters, against plain routes",
        text=f"{_TEXT}\n{lengths}",
        goals=list(_goals(latency, rate)),
        tables=[
            Table(
                ["latency, µs", "plain p50 / p99", "mesh p50 / p99", "mesh ÷ plain, p50"],
                [
                    [
                        f"{path}, {protocol}",
                        *(microseconds(latency[path][protocol][n]) for n in ("plain", "mesh")),
                        f"{_slower(latency[path], protocol):.2f}x",
                    ]
                    for path in _PATHS
                    for protocol in PROTOCOLS
                ],
            ),
            Table(
                ["throughput, Gbit/s", "plain", "mesh", "mesh ÷ plain"],
                [
                    [
                        path,
                        *(gigabits(found[n]) for n in ("plain", "mesh")),
                        f"{_more(found):.2f}x",
                    ]
                    for path, found in rate.items()
                ],
            ),
        ],
        plots=_plots(latency, rate),
    )


def _slower(found: Latencies, protocol: str) -> float:
    return latency_ratio(found[protocol], "mesh", "plain")


def _more(found: Rates) -> float:
    return rate_ratio(found, "mesh", "plain")


def _goals(latency: Mapping[str, Latencies], rate: Mapping[str, Rates]) -> Iterator[Goal]:
    """Of the fast path; that throughput should not be less is told by its inverse."""
    for path, (slower, lower) in _GOALS.items():
        yield Goal(f"{path}: latency, TCP", _slower(latency[path], "TCP"), slower, "x")
        inverse = 1 / _more(rate[path])
        yield Goal(f"{path}: plain throughput", inverse, round(1 / lower, 2), "x")


def _plots(latency: Mapping[str, Latencies], rate: Mapping[str, Rates]) -> list[Plot]:
    return [
        Bars(
            "latency",
            "Latency between pods: median against plain routes (less is better)",
            "x",
            list(_PATHS),
            {p: [_slower(latency[path], p) for path in _PATHS] for p in PROTOCOLS},
        ),
        Bars(
            "throughput",
            "Throughput between pods against plain routes (more is better)",
            "x",
            list(_PATHS),
            {"TCP": [_more(rate[path]) for path in _PATHS]},
        ),
    ]


def _make_known(sandbox: Bed, addresses: dict[str, str]) -> None:
    """Have the pods meet: an address is on the fast path once it has been resolved."""
    for address in addresses.values():
        sandbox.run(sandbox.node(1).pods[0], "ping", "-c1", address)
    for node in (sandbox.node(1), sandbox.node(2)):
        bpffs, pod = sandbox.sandbox.bpffs(node), node.pods[0].addresses.v4
        until(partial(_is_known, bpffs, pod), f"{pod} is known", timeout=10, every=0.1)


def _is_known(bpffs: Path, address: IPAddress) -> bool:
    return address in inspect.pods(bpffs)

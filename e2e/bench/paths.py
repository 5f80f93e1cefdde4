"""Latency and throughput between pods of two clusters, against pods of one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from agent.kernel import inspect
from clustermesh.model import IPAddress

from .bed import Bed, bed, until
from .measurement import Bars, Goal, Measurement, Plot, Say, Table, percentile

_PATHS: Final = {
    f"{routing}{', fast path' if fast else ''}": (routing, fast)
    for routing in ("tunnel", "direct")
    for fast in (False, True)
}
_GOALS: Final = {"tunnel, fast path": (1.10, 0.9), "direct, fast path": (1.05, 0.95)}
"""Latency at most, and throughput at least, against plain routes."""

_PROTOCOLS: Final = ("TCP", "UDP")

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
    messages, runs, seconds = (500, 1, 1) if quick else (10_000, 5, 2)
    latency: dict[str, dict[str, dict[str, list[int]]]] = {}
    bandwidth: dict[str, dict[str, list[float]]] = {}
    for path, (routing, fast) in _PATHS.items():
        settings = [f"fast-path={'on' if fast else 'off'}"]
        with (
            bed(f"paths-{routing}", nodes=2, routing=routing, agent=settings) as sandbox,
            ExitStack() as open_,
        ):
            servers = {"plain": sandbox.node(1, 2).pods[0], "mesh": sandbox.node(2, 1).pods[0]}
            for pod in servers.values():
                open_.enter_context(sandbox.server(pod))
                open_.enter_context(sandbox.serving(pod, *_IPERF_SERVER, ready="Server listening"))
            addresses = {name: str(pod.addresses.v4) for name, pod in servers.items()}
            if fast:
                _make_known(sandbox, addresses)
            latency[path] = _latency(sandbox, addresses, messages)
            bandwidth[path] = _bandwidth(sandbox, addresses, runs, seconds)
        slower, rate = _latency_ratio(latency[path]["TCP"]), _rate_ratio(bandwidth[path])
        say(f"{path}: {slower:.2f} times the latency, {rate:.2f} times the throughput")

    return Measurement(
        title="Between clusters, against plain routes",
        text=_TEXT + f"\n{messages:,} messages; {runs} runs of {seconds} s, of which the median.",
        goals=list(_goals(latency, bandwidth)),
        tables=[
            Table(
                ["latency, µs", "plain p50 / p99", "mesh p50 / p99", "mesh ÷ plain, p50"],
                [
                    [
                        f"{path}, {protocol}",
                        *(_microseconds(latency[path][protocol][n]) for n in ("plain", "mesh")),
                        f"{_latency_ratio(latency[path][protocol]):.2f}x",
                    ]
                    for path in _PATHS
                    for protocol in _PROTOCOLS
                ],
            ),
            Table(
                ["throughput, Gbit/s", "plain", "mesh", "mesh ÷ plain"],
                [
                    [
                        path,
                        *(f"{statistics.median(rates[n]) / 1e9:.1f}" for n in ("plain", "mesh")),
                        f"{_rate_ratio(rates):.2f}x",
                    ]
                    for path, rates in bandwidth.items()
                ],
            ),
        ],
        plots=_plots(latency, bandwidth),
    )


def _goals(
    latency: dict[str, dict[str, dict[str, list[int]]]],
    bandwidth: dict[str, dict[str, list[float]]],
) -> Iterator[Goal]:
    """Of the fast path; that throughput should not be less is told by its inverse."""
    for path, (slower, lower) in _GOALS.items():
        yield Goal(f"{path}: latency, TCP", _latency_ratio(latency[path]["TCP"]), slower, "x")
        inverse = 1 / _rate_ratio(bandwidth[path])
        yield Goal(f"{path}: plain throughput", inverse, round(1 / lower, 2), "x")


def _plots(
    latency: dict[str, dict[str, dict[str, list[int]]]],
    bandwidth: dict[str, dict[str, list[float]]],
) -> list[Plot]:
    return [
        Bars(
            "latency",
            "Latency between pods: median against plain routes (less is better)",
            "x",
            list(_PATHS),
            {p: [_latency_ratio(latency[r][p]) for r in _PATHS] for p in _PROTOCOLS},
        ),
        Bars(
            "throughput",
            "Throughput between pods against plain routes (more is better)",
            "x",
            list(_PATHS),
            {"TCP": [_rate_ratio(bandwidth[r]) for r in _PATHS]},
        ),
    ]


_IPERF_SERVER: Final = ("iperf3", "--server", "--forceflush")


def _make_known(sandbox: Bed, addresses: dict[str, str]) -> None:
    """Have the pods meet: an address is on the fast path once it has been resolved."""
    for address in addresses.values():
        sandbox.run(sandbox.node(1).pods[0], "ping", "-c1", address)
    for node in (sandbox.node(1), sandbox.node(2)):
        bpffs, pod = sandbox.sandbox.bpffs(node), node.pods[0].addresses.v4
        until(partial(_is_known, bpffs, pod), f"{pod} is known", timeout=10, every=0.1)


def _is_known(bpffs: Path, address: IPAddress) -> bool:
    return address in inspect.pods(bpffs)


def _latency(
    sandbox: Bed, addresses: dict[str, str], messages: int
) -> dict[str, dict[str, list[int]]]:
    servers = [f"{name}={address}" for name, address in addresses.items()]
    client = sandbox.node(1).pods[0]
    found: dict[str, dict[str, list[int]]] = sandbox.run_module(
        client, "pingpong", *servers, f"--messages={messages}"
    )
    return found


def _bandwidth(
    sandbox: Bed, addresses: dict[str, str], runs: int, seconds: int
) -> dict[str, list[float]]:
    """Bits per second, as they arrived."""
    rates: dict[str, list[float]] = {name: [] for name in addresses}
    client = sandbox.node(1).pods[0]
    for _ in range(runs):
        for name, address in addresses.items():
            command = ("iperf3", "--client", address, "--time", str(seconds), "--json")
            report = json.loads(sandbox.run(client, *command))
            rates[name].append(report["end"]["sum_received"]["bits_per_second"])
    return rates


def _latency_ratio(samples: dict[str, list[int]]) -> float:
    return percentile(samples["mesh"], 0.5) / percentile(samples["plain"], 0.5)


def _rate_ratio(rates: dict[str, list[float]]) -> float:
    return statistics.median(rates["mesh"]) / statistics.median(rates["plain"])


def _microseconds(nanoseconds: list[int]) -> str:
    return f"{percentile(nanoseconds, 0.5) / 1000:.1f} / {percentile(nanoseconds, 0.99) / 1000:.1f}"

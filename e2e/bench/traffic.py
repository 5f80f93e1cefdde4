"""From a pod to several servers by turns: how long a message takes, and how much gets through."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple, TypeAlias

from clustermesh.sandbox.model import Pod

from .bed import Bed
from .measurement import percentile

PROTOCOLS: Final = ("TCP", "UDP")

Latencies: TypeAlias = Mapping[str, Mapping[str, Sequence[int]]]
"""Nanoseconds of each message there and back, by protocol and server."""

Rates: TypeAlias = Mapping[str, Sequence[float]]
"""Bits per second of each run, by server."""

_IPERF_SERVER: Final = ("iperf3", "--server", "--forceflush")


class Lengths(NamedTuple):
    """How much to send."""

    messages: int
    runs: int
    seconds: int  # of a run

    def __str__(self) -> str:
        runs = f"{self.runs} runs of {self.seconds} s, of which the median"
        return f"{self.messages:,} messages; {runs}."


@contextmanager
def servers(sandbox: Bed, *pods: Pod) -> Iterator[None]:
    """Have what both measurements need run in `pods`."""
    with ExitStack() as open_:
        for pod in pods:
            open_.enter_context(sandbox.server(pod))
            open_.enter_context(sandbox.serving(pod, *_IPERF_SERVER, ready="Server listening"))
        yield


def latencies(
    sandbox: Bed, client: Pod, addresses: Mapping[str, str], lengths: Lengths
) -> Latencies:
    """A message to one server, then to the next, on one connection to each."""
    to = [f"{name}={address}" for name, address in addresses.items()]
    found: Latencies = sandbox.run_module(
        client, "pingpong", *to, f"--messages={lengths.messages}", timeout=600
    )
    return found


def rates(sandbox: Bed, client: Pod, addresses: Mapping[str, str], lengths: Lengths) -> Rates:
    """A run to one server, then to the next: bits per second, as they arrived."""
    found: dict[str, list[float]] = {name: [] for name in addresses}
    for _ in range(lengths.runs):
        for name, address in addresses.items():
            command = ("iperf3", "--client", address, "--time", str(lengths.seconds), "--json")
            report = json.loads(sandbox.run(client, *command))
            found[name].append(report["end"]["sum_received"]["bits_per_second"])
    return found


def latency_ratio(samples: Mapping[str, Sequence[int]], of: str, to: str) -> float:
    """How many times as long a message takes."""
    return percentile(samples[of], 0.5) / percentile(samples[to], 0.5)


def rate_ratio(found: Rates, of: str, to: str) -> float:
    """How many times as much gets through."""
    return statistics.median(found[of]) / statistics.median(found[to])


def microseconds(nanoseconds: Sequence[int]) -> str:
    """The median and the 99th percentile."""
    return f"{percentile(nanoseconds, 0.5) / 1000:.1f} / {percentile(nanoseconds, 0.99) / 1000:.1f}"


def gigabits(found: Sequence[float]) -> str:
    """The median, in Gbit/s."""
    return f"{statistics.median(found) / 1e9:.3g}"

"""
What encryption between clusters costs, with the kernel's WireGuard and with wireguard-go.

    python -m e2e.bench encrypted          here; where the kernel has no WireGuard, also in a guest
    python -m e2e.bench.encrypted FILE …   what the guest runs: one sandbox, the samples into FILE
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Final

import msgspec

from clustermesh.sandbox.cache import UnavailableError

from . import bare
from .bed import bed
from .guests import run_in_guest
from .measurement import Bars, Goal, Measurement, Say, Table
from .traffic import (
    PROTOCOLS,
    Lengths,
    gigabits,
    latencies,
    latency_ratio,
    microseconds,
    rate_ratio,
    rates,
    servers,
)

_BARE: Final = 0.95
"""Of a bare link's throughput, at least."""

_TEXT: Final = """\
The same two measurements with `--encryption wireguard`: **plain** are the plain routes inside of a
cluster, **mesh** is another cluster's pod through the mesh, and **bare** is the same way through a
WireGuard device made by hand, without any mesh: two more addresses, one peer. They take turns.
Where the machine's kernel has no WireGuard, the kernel's is measured in User Mode Linux, a guest
that runs everything several times as slow; only ratios within it say something.
"""


class Samples(msgspec.Struct):
    """What was measured in one sandbox."""

    kernel: str  # its release
    driver: str  # of WireGuard
    latency: dict[str, dict[str, list[int]]]  # see traffic.Latencies
    rate: dict[str, list[float]]  # see traffic.Rates

    @property
    def where(self) -> str:
        """Names the row of a table."""
        return f"{self.driver}, Linux {self.kernel}"


_SAMPLES: Final = msgspec.json.Decoder(Samples)


def measure(say: Say, *, quick: bool) -> Measurement:
    """Here, and in a guest that has a kernel with WireGuard if this one has none."""
    lengths = Lengths(200, 1, 1) if quick else Lengths(5_000, 5, 2)
    found, left_out = [_measure(lengths)], ""
    if not bare.has_wireguard():
        try:
            found.insert(0, _SAMPLES.decode(run_in_guest("encrypted", *lengths)))
        except UnavailableError as error:
            left_out = f"\nThe kernel's WireGuard was not measured: {error}\n"
    for samples in found:
        for other in samples.rate.keys() - {"mesh"}:
            ratio = rate_ratio(samples.rate, "mesh", other)
            say(f"{samples.where}: {ratio:.3f} times the throughput of {other}")
    compared = [(samples, other) for samples in found for other in samples.rate if other != "mesh"]
    return Measurement(
        title="Encrypted",
        text=f"{_TEXT}\n{lengths}{left_out}",
        goals=[
            Goal("bare WireGuard, throughput", 1 / ratio, round(1 / _BARE, 2), "x")
            for samples, other in compared
            if other == "bare"
            for ratio in [rate_ratio(samples.rate, "mesh", "bare")]
        ],
        tables=[
            Table(
                ["latency, µs, p50 / p99", "mesh", "to", "", "mesh ÷"],
                [
                    [
                        f"{samples.where}, {protocol}",
                        microseconds(samples.latency[protocol]["mesh"]),
                        other,
                        microseconds(samples.latency[protocol][other]),
                        f"{latency_ratio(samples.latency[protocol], 'mesh', other):.2f}x",
                    ]
                    for samples, other in compared
                    for protocol in PROTOCOLS
                ],
            ),
            Table(
                ["throughput, Gbit/s", "mesh", "to", "", "mesh ÷"],
                [
                    [
                        samples.where,
                        gigabits(samples.rate["mesh"]),
                        other,
                        gigabits(samples.rate[other]),
                        f"{rate_ratio(samples.rate, 'mesh', other):.3f}x",
                    ]
                    for samples, other in compared
                ],
            ),
        ],
        plots=[
            Bars(
                "encrypted",
                "Encrypted throughput between pods (more is better)",
                "x",
                [f"{samples.driver} ÷ {other}" for samples, other in compared],
                {"TCP": [rate_ratio(samples.rate, "mesh", other) for samples, other in compared]},
            )
        ],
    )


def _measure(lengths: Lengths) -> Samples:
    has_kernel = bare.has_wireguard()
    with bed("encrypted", nodes=2, encryption="wireguard") as sandbox:
        client, near, far = sandbox.node(1), sandbox.node(1, 2), sandbox.node(2)
        addresses = {
            "plain": str(near.pods[0].addresses.v4),
            "mesh": str(far.pods[0].addresses.v4),
        }
        if has_kernel:
            addresses["bare"] = bare.link(sandbox, client, far)
        with servers(sandbox, near.pods[0], far.pods[0]):
            latency = latencies(sandbox, client.pods[0], addresses, lengths)
            rate = rates(sandbox, client.pods[0], addresses, lengths)
    driver = "kernel WireGuard" if has_kernel else "wireguard-go"
    return Samples(platform.release(), driver, latency, rate)  # type: ignore[arg-type]


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(_measure(Lengths(*map(int, sys.argv[2:])))))

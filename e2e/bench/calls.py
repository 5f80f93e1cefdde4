"""Connecting through a global service, against connecting to its backend."""

from __future__ import annotations

from typing import Final

from .bed import Bed, bed, until
from .inside.server import REQUEST_PORT
from .maps import service_maps
from .measurement import Bars, Goal, Measurement, Say, Table, percentile

_SIZES: Final = (10, 1_000, 10_000)
_KINDS: Final = ("plain", "direct", "service")
_GOAL: Final = 1.1

_TEXT: Final = """\
A client in a pod connects, sends 16 bytes, and receives them back from a pod on the same node,
where nothing else takes time. The three kinds take turns, call by call, in one process:

- **plain**: straight to the backend, from a cgroup that nothing is attached to;
- **direct**: straight to the backend, from the pod's cgroup, so the load balancing looks, and finds
  that the address is no service: what the mesh costs connections that do not use it;
- **service**: through a global service, at random one of those in the maps.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Fill the maps of a real agent by way of etcd, and call."""
    calls = 1_000 if quick else 20_000
    samples: dict[int, dict[str, list[int]]] = {}
    with bed("calls", pods=2) as sandbox, sandbox.server(sandbox.node(1).pods[1]):
        sandbox.stop("cluster1/apiserver")
        for before, size in zip((0, *_SIZES), _SIZES, strict=False):
            _fill(sandbox, before, size)
            samples[size] = _call(sandbox, size, calls)
            ratio = _ratio(samples[size], 0.5, "service", "plain")
            say(f"{size:6,} services: {ratio:.3f} times a plain connection")

    largest = samples[_SIZES[-1]]
    micro = {
        (size, kind, share): percentile(samples[size][kind], share) / 1000
        for size in _SIZES
        for kind in _KINDS
        for share in (0.5, 0.99)
    }
    return Measurement(
        title="A connection through a global service",
        text=_TEXT + f"\n{calls:,} calls of each kind. Times in µs; ratios are of medians.",
        goals=[
            Goal(
                f"service against plain, median, {_SIZES[-1]:,} services",
                _ratio(largest, 0.5, "service", "plain"),
                _GOAL,
                "x",
            )
        ],
        tables=[
            Table(
                [
                    "services",
                    *(f"{k} p50 / p99" for k in _KINDS),
                    "direct ÷ plain",
                    "service ÷ plain",
                ],
                [
                    [
                        f"{size:,}",
                        *(
                            f"{micro[size, k, 0.5]:.1f} / {micro[size, k, 0.99]:.1f}"
                            for k in _KINDS
                        ),
                        f"{_ratio(samples[size], 0.5, 'direct', 'plain'):.3f}x",
                        f"{_ratio(samples[size], 0.5, 'service', 'plain'):.3f}x",
                    ]
                    for size in _SIZES
                ],
            )
        ],
        plots=[
            Bars(
                "calls",
                "Connect, request and answer: median against plain",
                "x",
                [f"{size:,} services" for size in _SIZES],
                {
                    kind: [_ratio(samples[size], 0.5, kind, "plain") for size in _SIZES]
                    for kind in _KINDS
                },
                goal=_GOAL,
            )
        ],
    )


def _fill(sandbox: Bed, start: int, size: int) -> None:
    """Have `size` services in the maps of the client's node, all with the one backend."""
    cluster = sandbox.cluster(1)
    sandbox.run_module(
        cluster.control,
        "fill",
        f"--cluster={cluster.name}",
        f"--id={cluster.id}",
        f"--certificates={sandbox.certificates(cluster)}",
        f"--start={start}",
        f"--services={size}",
        f"--first-frontend={_first_frontend(sandbox)}",
        f"--backend={_backend(sandbox)}",
    )
    with service_maps(sandbox.sandbox.bpffs(sandbox.node(1))) as maps:
        until(lambda: maps.count() == (size, size), f"{size} in the maps", timeout=30, every=0.1)


def _call(sandbox: Bed, size: int, calls: int) -> dict[str, list[int]]:
    client = sandbox.node(1).pods[0]
    nanoseconds: dict[str, list[int]] = sandbox.run_module(
        client,
        "calls",
        f"--backend={_backend(sandbox)}",
        f"--first-service={_first_frontend(sandbox)}:80",
        f"--services={size}",
        f"--balanced={sandbox.cgroup(client)}",
        f"--unbalanced={sandbox.unbalanced_cgroup()}",
        f"--calls={calls}",
    )
    return nanoseconds


def _backend(sandbox: Bed) -> str:
    return f"{sandbox.node(1).pods[1].addresses.v4}:{REQUEST_PORT}"


def _first_frontend(sandbox: Bed) -> str:
    return str(sandbox.cluster(1).service_cidrs.v4[1024])


def _ratio(samples: dict[str, list[int]], share: float, kind: str, base: str) -> float:
    return percentile(samples[kind], share) / percentile(samples[base], share)

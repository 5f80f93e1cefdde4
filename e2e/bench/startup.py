"""A whole mesh on one machine, with one command."""

from __future__ import annotations

from statistics import median
from typing import Final

from .bed import seconds_to_up
from .measurement import Bars, Goal, Measurement, Say, Table

_SECONDS: Final = 15.0
_SHAPES: Final = ((1, 1, 1), (2, 2, 2), (3, 2, 2))  # clusters, nodes, pods
_GOAL_SHAPE: Final = (2, 2, 2)

_TEXT: Final = """\
The seconds that `clustermesh sandbox up` takes until every daemon says that it is ready:
namespaces, certificates, etcd servers, apiservers, agents, BPF programs, tunnels and pods.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Bring sandboxes up and down."""
    runs = 1 if quick else 3
    seconds = {}
    for clusters, nodes, pods in _SHAPES:
        taken = [seconds_to_up(clusters=clusters, nodes=nodes, pods=pods) for _ in range(runs)]
        seconds[clusters, nodes, pods] = median(taken)
        say(f"{clusters} x {nodes} x {pods}: {median(taken):.1f} s")
    names = [f"{c} x {n} x {p}" for c, n, p in _SHAPES]
    return Measurement(
        title="Bringing up a sandbox",
        text=_TEXT + f"\nMedian of {runs}.",
        goals=[Goal("sandbox up, 2 x 2 x 2", seconds[_GOAL_SHAPE], _SECONDS, "s")],
        tables=[
            Table(
                ["clusters x nodes x pods", "seconds"],
                [[name, f"{t:.1f}"] for name, t in zip(names, seconds.values(), strict=True)],
            )
        ],
        plots=[
            Bars(
                "startup",
                "clustermesh sandbox up",
                "s",
                names,
                {"seconds": list(seconds.values())},
                goal=_SECONDS,
            )
        ],
    )

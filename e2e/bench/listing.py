"""Fifty thousand remote services, from etcd into the maps."""

from __future__ import annotations

import shutil
import time
from typing import Final

from agent.kernel import inspect

from .bed import Bed, bed, until
from .maps import service_maps
from .measurement import Bars, Goal, Measurement, Say, Table
from .usage import MB, cpu_seconds, memory, wait_until_idle

_SECONDS: Final = 10.0
_MEGABYTES: Final = 300.0
_FIRST_BACKEND: Final = "10.128.0.1"

_TEXT: Final = """\
Two etcd servers hold the services: cluster1's own, global and without backends, and cluster2's,
each with two backends of its own. An agent of cluster1 that knows nothing yet is started as a
process; the clock runs from then until the pinned BPF maps hold everything, so it includes
starting Python, mutual TLS, decoding, merging and writing. The peak is that of the resident set
until it is idle again, the copy that it keeps on disk included.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Start an agent, and watch its maps fill."""
    size = 5_000 if quick else 50_000
    with bed("listing", pods=0) as sandbox:
        for name in (
            "cluster1/node1",
            "cluster2/node1",
            "cluster1/apiserver",
            "cluster2/apiserver",
        ):
            sandbox.stop(name)
        first_frontend = str(sandbox.cluster(1).service_cidrs.v4[1024])
        _fill(sandbox, 1, f"--services={size}", f"--first-frontend={first_frontend}")
        _fill(sandbox, 2, f"--services={size}", f"--first-backend={_FIRST_BACKEND}")
        say(f"{size:,} services are in both etcds")
        node = sandbox.node(1)
        shutil.rmtree(sandbox.sandbox.home(node) / "state")

        filled: list[tuple[float, int]] = []
        with service_maps(sandbox.sandbox.bpffs(node)) as maps:
            started = time.monotonic()
            agent = sandbox.start(node.place)

            def is_filled() -> bool:
                backends = maps.count()[1]
                filled.append((time.monotonic() - started, backends))
                return backends == 2 * size

            until(is_filled, "everything in the maps", timeout=120, every=0.1)
        seconds, cpu = filled[-1][0], cpu_seconds(agent)
        _check(sandbox, size)
        wait_until_idle(agent)
        used = memory(agent)
    say(f"{seconds:.1f} s, {used.peak / MB:.0f} MB at most, {used.rss / MB:.0f} MB idle")
    return Measurement(
        title=f"{size:,} remote services with two backends each",
        text=_TEXT,
        goals=[
            Goal(f"{size:,} services in the maps", seconds, _SECONDS, "s"),
            Goal(f"{size:,} services, peak memory (RSS)", used.peak / MB, _MEGABYTES, "MB"),
        ],
        tables=[
            Table(
                ["CPU time", "idle RSS", "idle PSS"],
                [[f"{cpu:.1f} s", f"{used.rss / MB:.0f} MB", f"{used.pss / MB:.0f} MB"]],
            )
        ],
        plots=[
            Bars(
                "listing",
                "Seconds until a share of the backends is in the maps",
                "s",
                ["a quarter", "half", "three quarters", "all"],
                {"seconds": [_when(filled, share * size / 2) for share in (1, 2, 3, 4)]},
                goal=_SECONDS,
            )
        ],
    )


def _fill(sandbox: Bed, number: int, *what: str) -> None:
    cluster = sandbox.cluster(number)
    sandbox.run_module(
        cluster.control,
        "fill",
        f"--cluster={cluster.name}",
        f"--id={cluster.id}",
        f"--certificates={sandbox.certificates(cluster)}",
        *what,
    )


def _check(sandbox: Bed, size: int) -> None:
    """See that it is not only as many as there should be, but each in its place."""
    rows = inspect.frontends(sandbox.sandbox.bpffs(sandbox.node(1)))
    backends = {backend for row in rows for backend in row.backends}
    assert len(rows) == size, len(rows)
    assert all(len(row.backends) == 2 for row in rows)
    assert len(backends) == 2 * size, len(backends)
    assert None not in backends


def _when(filled: list[tuple[float, int]], backends: float) -> float:
    return next(seconds for seconds, count in filled if count >= backends)

"""What the daemons take when nothing happens."""

from __future__ import annotations

from statistics import median
from typing import Final

from . import usage
from .bed import bed
from .measurement import Bars, Goal, Measurement, Say, Table
from .usage import MB, Memory, wait_until_idle

_MEGABYTES: Final = 60.0

_TEXT: Final = """\
Two connected clusters with two nodes each and a pod on each node, when the daemons have come to
rest. RSS counts what processes share, such as libraries, in each of them; PSS divides it
between those that share it, here four agents and two apiservers.
"""


def measure(say: Say, *, quick: bool) -> Measurement:
    """Look at every daemon of a sandbox."""
    del quick
    found: dict[str, list[Memory]] = {"agent": [], "apiserver": []}
    with bed("memory", nodes=2) as sandbox:
        daemons = [part for part in sandbox.world.parts() if part.program in found]
        for part in daemons:
            wait_until_idle(sandbox.running(part.name))
        for part in daemons:
            found[part.program].append(usage.memory(sandbox.running(part.name)))
    rss = {name: median(used.rss for used in all_) / MB for name, all_ in found.items()}
    pss = {name: median(used.pss for used in all_) / MB for name, all_ in found.items()}
    peak = {name: max(used.peak for used in all_) / MB for name, all_ in found.items()}
    say(f"agent {rss['agent']:.0f} MB, apiserver {rss['apiserver']:.0f} MB")
    return Measurement(
        title="Memory of idle daemons",
        text=_TEXT,
        goals=[Goal("agent, idle (RSS)", rss["agent"], _MEGABYTES, "MB")],
        tables=[
            Table(
                ["MB", "RSS", "PSS", "peak RSS"],
                [
                    [name, f"{rss[name]:.1f}", f"{pss[name]:.1f}", f"{peak[name]:.1f}"]
                    for name in found
                ],
            )
        ],
        plots=[
            Bars(
                "memory",
                "Memory of an idle daemon",
                "MB",
                list(found),
                {"RSS": list(rss.values()), "PSS": list(pss.values())},
                goal=_MEGABYTES,
            )
        ],
    )

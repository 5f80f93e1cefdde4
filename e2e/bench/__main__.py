"""Run the measurements; all of them at full length make the report."""

from __future__ import annotations

import argparse
import time
from functools import partial
from types import ModuleType
from typing import Final

from . import (
    calls,
    changes,
    encrypted,
    kubernetes,
    listing,
    memory,
    paths,
    peers,
    report,
    routes,
    startup,
)

_MEASUREMENTS: Final[dict[str, ModuleType]] = {
    "calls": calls,
    "paths": paths,
    "encrypted": encrypted,
    "peers": peers,
    "routes": routes,
    "listing": listing,
    "changes": changes,
    "kubernetes": kubernetes,
    "memory": memory,
    "startup": startup,
}


def main() -> None:
    """Be `python -m e2e.bench`."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.bench",
        description=f"Measure, and write {report.DOCUMENT.name} if that was everything.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="small and inexact: does it work?")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in _MEASUREMENTS]
    if unknown:
        parser.error(f"there is no {unknown[0]}, only {', '.join(_MEASUREMENTS)}")

    done = []
    for name in options.names or _MEASUREMENTS:
        started = time.monotonic()
        _say(name, "…")
        done.append(_MEASUREMENTS[name].measure(partial(_say, name), quick=options.quick))
        _say(name, f"done after {time.monotonic() - started:.0f} s")
    if options.names or options.quick:
        for measurement in done:
            print(f"\n{measurement.title}\n\n{report.text(measurement)}")
    else:
        report.write(done)
        print(f"{report.DOCUMENT} is written")
    for goal in (goal for measurement in done for goal in measurement.goals if not goal.is_met):
        print(f"missed: {goal.what}: {goal.shown} {goal.unit}, not {goal.at_most:g}")


def _say(name: str, text: str) -> None:
    print(f"{name:>10}: {text}", flush=True)


if __name__ == "__main__":
    main()

"""What a process takes, as the kernel counts it. Sizes in bytes, durations in seconds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from clustermesh.sandbox.process import Process

MB = 1 << 20


class Memory(NamedTuple):
    """Of one process."""

    rss: int
    pss: int  # what it shares with others is divided between them
    peak: int  # of the RSS, since it was started


def memory(process: Process) -> Memory:
    """What it has now."""
    rollup = _fields(Path(f"/proc/{process.pid}/smaps_rollup"))
    status = _fields(Path(f"/proc/{process.pid}/status"))
    return Memory(rollup["Rss"], rollup["Pss"], status["VmHWM"])


def cpu_seconds(process: Process) -> float:
    """User and system time, of all its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(process: Process, *, for_seconds: float = 3.0, timeout: float = 60.0) -> None:
    """
    Wait until it has used less than 2 % of a CPU for a while.

    Raises:
        TimeoutError: it goes on.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        before = cpu_seconds(process)
        time.sleep(for_seconds)
        if cpu_seconds(process) - before < 0.02 * for_seconds:
            return
    raise TimeoutError(f"process {process.pid} is still busy after {timeout:g} s")


def _fields(path: Path) -> dict[str, int]:
    """The lines `Name:   123 kB`, in bytes."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest.split()[0]) * 1024
    return found

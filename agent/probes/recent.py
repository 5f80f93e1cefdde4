"""What a node drops lately: of counters that only grow, what was added."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

_LATELY: Final = 15.0  # seconds: some rounds of probes
_NETSTAT: Final = Path("/proc/self/net/netstat")


class Recent:
    """How much each counter grew in the last seconds."""

    def __init__(self, read: Callable[[], Mapping[str, int]], now: Callable[[], float]) -> None:
        self._read = read
        self._now = now
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque()

    def look(self) -> Mapping[str, int]:
        """By name what was added, without what was not. They are read once in a second at most."""
        now = self._now()
        while len(self._samples) > 1 and self._samples[1][0] <= now - _LATELY:
            self._samples.popleft()
        if not self._samples or self._samples[-1][0] <= now - 1.0:
            self._samples.append((now, self._read()))
        before, current = self._samples[0][1], self._samples[-1][1]
        added = {name: count - before.get(name, 0) for name, count in current.items()}
        return {name: count for name, count in added.items() if count > 0}


def rp_filtered(netstat: Path = _NETSTAT) -> int:
    """Packets that reverse-path filters of this network namespace dropped since it was made."""
    lines = [line.split() for line in netstat.read_text().splitlines()]
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if "IPReversePathFilter" in names:
            return int(values[names.index("IPReversePathFilter")])
    return 0


def strict_devices(sysctls: Path) -> tuple[str, ...]:
    """The devices whose reverse-path filter is strict: the larger of theirs and `all` is 1."""
    directory = sysctls / "ipv4/conf"
    settings: dict[str, str] = {}
    for path in directory.glob("*/rp_filter"):
        with contextlib.suppress(OSError):  # the device has just gone
            settings[path.parent.name] = path.read_text().strip()
    general = settings.pop("all", "0")
    return tuple(
        sorted(
            device
            for device, value in settings.items()
            if max(general, value) == "1" and device not in {"default", "lo"}
        )
    )

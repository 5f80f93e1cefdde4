"""What goes on in a sandbox for as long as a `with` lasts, and what it has shown afterwards."""

from __future__ import annotations

import json
import re
import signal
import threading
from functools import partial
from typing import Final, Self

from clustermesh.model import L4Address

from .mesh import PATIENCE, Mesh, Report, call_command, eventually

_SEQUENCE: Final = re.compile(r"icmp_seq=(\d+)")


class Ping:
    """A ping every 5 ms from a pod to an address, for as long as a `with` lasts."""

    def __init__(self, mesh: Mesh, place: str, target: object) -> None:
        self._running = mesh.begin(place, "ping", "-n", "-i", "0.005", str(target))
        self._output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._running.send_signal(signal.SIGINT)
        self._output, _ = self._running.communicate(timeout=30 * PATIENCE)

    def lost(self) -> list[int]:
        """The numbers that no answer came to, up to the last answer."""
        answers = [line for line in self._output.splitlines() if " time=" in line]
        seen = {int(match[1]) for line in answers if (match := _SEQUENCE.search(line))}
        assert len(seen) > 50, self._output
        return sorted(set(range(1, max(seen) + 1)) - seen)


class Calls:
    """
    Calls from a pod, made by `clustermesh.sandbox.call` for as long as a `with` lasts.

    It is entered when the first connection has been made; afterwards there is a report.
    """

    def __init__(
        self, mesh: Mesh, place: str, mode: str, host: object, port: int, *, every: float
    ) -> None:
        endless = ("--seconds=300",) if mode == "stream" else ("--count=1000000",)
        self._opened = partial(mesh.connections_opened, place)
        self._before = self._opened()
        command = call_command(mode, host, port, f"--every={every}", *endless)
        self._running = mesh.begin(place, *command)
        self.report: Report = {}

    def __enter__(self) -> Self:
        try:
            eventually("a connection", lambda: self._opened() > self._before)
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._running.terminate()
        output, _ = self._running.communicate(timeout=30 * PATIENCE)
        self.report = json.loads(output)


class KernelWatch:
    """
    Looks at frontends in the kernels of all nodes all the time, for as long as a `with` lasts.

    It watches those that were there when it began.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._nodes = [node.place for node in mesh.nodes]
        self._watched = {node: frozenset(mesh.held(node)) for node in self._nodes}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._errors: list[Exception] = []
        self.looks = 0
        self.seen: dict[tuple[str, L4Address], set[frozenset[L4Address]]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        eventually("a look at every kernel", lambda: self.looks)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._errors:
            raise self._errors[0]

    def withdrawn(self) -> dict[str, list[str]]:
        """Frontends that were not the same all the time, with all that their backends were."""
        return {
            f"{node}: {address}": sorted(",".join(sorted(map(str, one))) for one in states)
            for (node, address), states in self.seen.items()
            if len(states) > 1
        }

    def _look(self) -> None:
        try:
            while not self._stop.is_set():
                for node in self._nodes:
                    held = self._mesh.held(node)
                    for address in self._watched[node]:
                        states = self.seen.setdefault((node, address), set())
                        states.add(held.get(address, frozenset()))
                self.looks += 1
                self._stop.wait(0.01)
        except Exception as error:  # noqa: BLE001 - raised again where the `with` ends
            self._errors.append(error)

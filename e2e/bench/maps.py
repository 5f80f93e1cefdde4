"""How far an agent is, by the BPF maps themselves: the agent is not asked, and not slowed down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agent.kernel import layouts, pins
from agent.kernel.bpf import Map
from clustermesh.model import L4Address


class ServiceMaps:
    """What the socket load balancing of one node has to choose from."""

    def __init__(self, frontends: Map) -> None:
        self._frontends = frontends

    def count(self) -> tuple[int, int]:
        """How many frontends there are, and how many backends they have together."""
        _, values = self._frontends.read()
        counts = [count for _, _, count, _ in layouts.FRONTEND.iter_unpack(values)]
        return len(counts), sum(counts)

    def has_only(self, frontend: L4Address, backend: L4Address) -> bool:
        """Whether connections to `frontend` go to `backend`."""
        value = self._frontends.get(layouts.pack_frontend_key(frontend))
        if value is None:
            return False
        _, _, count, near = layouts.FRONTEND.unpack(value)
        return count == 1 and bool(near.startswith(layouts.pack_endpoint(backend)))


@contextmanager
def service_maps(bpffs: Path) -> Iterator[ServiceMaps]:
    """The maps in use on the node with that BPF file system."""
    directory = pins.current(bpffs)
    assert directory is not None, "an agent has been there"
    with closing(Map.pinned(directory / "frontends", read_only=True)) as frontends:
        yield ServiceMaps(frontends)

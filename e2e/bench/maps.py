"""How far an agent is, by the BPF maps themselves: the agent is not asked, and not slowed down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agent.kernel import layouts, pins
from agent.kernel.bpf import Map
from clustermesh.model import L4Address


class ServiceMaps:
    """The maps of the socket load balancing of one node."""

    def __init__(self, frontends: Map, backends: Map) -> None:
        self._frontends = frontends
        self._backends = backends

    def count(self) -> tuple[int, int]:
        """How many frontends there are, and how many backends they have together."""
        _, values = self._frontends.read()
        counts = [count for _, _, count in layouts.FRONTEND.iter_unpack(values)]
        return len(counts), sum(counts)

    def has_only(self, frontend: L4Address, backend: L4Address) -> bool:
        """Whether connections to `frontend` go to `backend`."""
        value = self._frontends.get(layouts.pack_frontend_key(frontend))
        if value is None:
            return False
        id_, generation, count = layouts.FRONTEND.unpack(value)
        slot = layouts.BACKEND_KEY.pack(id_, generation, 0)
        return count == 1 and self._backends.get(slot) == layouts.pack_endpoint(backend)


@contextmanager
def service_maps(bpffs: Path) -> Iterator[ServiceMaps]:
    """The maps in use on the node with that BPF file system."""
    directory = pins.current(bpffs)
    assert directory is not None, "an agent has been there"
    with (
        closing(Map.pinned(directory / "frontends", read_only=True)) as frontends,
        closing(Map.pinned(directory / "backends", read_only=True)) as backends,
    ):
        yield ServiceMaps(frontends, backends)

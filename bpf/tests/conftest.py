from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kernel.datapath import Datapath
from agent.kernel.pins import Limits

from .lab import Node, fresh_cgroup, mounted_bpffs, node

SMALL = Limits(frontends=64, backends=128, ipcache=64)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("kernel"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """An empty BPF file system."""
    with mounted_bpffs(tmp_path / "bpffs") as path:
        yield path


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup."""
    with fresh_cgroup("pods") as path:
        yield path


@pytest.fixture
def datapath(bpffs: Path) -> Iterator[Datapath]:
    """Small maps, nothing attached."""
    opened = Datapath.open(bpffs, SMALL)
    yield opened
    opened.close()


@pytest.fixture
def pod(cgroup: Path) -> Iterator[Node]:
    """A process in `cgroup` and a network namespace that has all addresses of the backends."""
    with node(cgroup) as made:
        made.run("ip address add 10.1.0.1 dev lo", "ip address add 10.1.0.2 dev lo")
        made.run("ip address add fd00:1::1 dev lo nodad", "ip address add fd00:1::2 dev lo nodad")
        yield made

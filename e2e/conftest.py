"""
The promises, shown end to end.

    pytest e2e -n 2 --dist loadfile    each file has a sandbox of its own, which goes with it
    pytest e2e -k affinity --pause     leaves the sandbox of a failing test up to walk into

What a failing test leaves behind for reading is in e2e/failures/TEST/.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from clustermesh.sandbox import remains

from .compatibility import Findings
from .mesh import Mesh, bring_up

NewMesh: TypeAlias = Callable[..., Mesh]

_HERE: Final = Path(__file__).parent
_FAILURES: Final = _HERE / "failures"
_PAUSED: Final = pytest.StashKey[frozenset[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pause", action="store_true", help="leave the sandbox of a failing e2e test up"
    )
    parser.addoption(
        "--write-compatibility",
        action="store_true",
        help="write what e2e/test_beside_any_cni.py finds into docs/compatibility.md",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent == _HERE and os.geteuid() != 0:
        item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        meshes = [v for v in getattr(item, "funcargs", {}).values() if isinstance(v, Mesh)]
        for mesh in meshes:
            _save(item, report, mesh)
    return report


def _save(item: pytest.Item, report: pytest.TestReport, mesh: Mesh) -> None:
    directory = _FAILURES / re.sub(r"[^\w.-]+", "-", item.name)
    shutil.rmtree(directory, ignore_errors=True)
    mesh.save(directory)
    report.sections.append(("saved", f"tables, maps, routes and logs are in {directory}"))
    if item.config.getoption("--pause"):
        item.config.stash[_PAUSED] = _paused(item.config) | {mesh.name}
        report.sections.append(("paused", _how_to_walk_in(mesh)))


def _paused(config: pytest.Config) -> frozenset[str]:
    """The sandboxes to leave up."""
    return config.stash.get(_PAUSED, frozenset[str]())


def _how_to_walk_in(mesh: Mesh) -> str:
    name = f"--name {mesh.name}"
    return (
        f"clustermesh sandbox status {name}\n"
        f"clustermesh sandbox exec {name} cluster1/node1 -- clustermesh show frontends\n"
        f"clustermesh sandbox exec {name} cluster1/node1/pod1\n"
        f"clustermesh sandbox down {name}"
    )


@pytest.fixture(scope="session")
def findings() -> Findings:
    """What the tests beside CNIs find."""
    return Findings()


@pytest.fixture(scope="session")
def sandbox_name(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Names for sandboxes, that no other worker gives."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return lambda topic: f"e2e-{worker}-{topic}"[:32].rstrip("-")


@pytest.fixture(scope="module")
def new_mesh(
    request: pytest.FixtureRequest, sandbox_name: Callable[[str], str]
) -> Iterator[NewMesh]:
    """Bring up sandboxes by the flags of `clustermesh sandbox up`; they go with the module."""
    made: list[str] = []

    def make(topic: str, *flags: str) -> Mesh:
        made.append(sandbox_name(topic))
        return bring_up(made[-1], *flags)

    yield make
    for name in made:
        if name not in _paused(request.config):
            remains.down(name)
            assert not remains.remains(name)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for name in sorted(_paused(config)):
        terminalreporter.write_line(f"sandbox {name} is still up")

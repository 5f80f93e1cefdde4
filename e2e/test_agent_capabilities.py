"""The capabilities that the chart gives an agent are enough, and those that it needs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import yaml

from .conftest import NewMesh
from .mesh import CLI, Mesh, eventually

_VALUES: Final = Path(__file__).parents[1] / "helm/values.yaml"
_NODE: Final = "cluster1/node1"
_FASTER: Final = "PERFMON"  # works without, but the verifier adds Spectre barriers
_LEFT: Final = "nothing of clustermesh is left on this node"


def _given() -> list[str]:
    """The capabilities of the chart."""
    context = yaml.safe_load(_VALUES.read_text())["agent"]["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    return [str(name) for name in context["capabilities"]["add"]]


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("caps", "--clusters", "1", "--nodes", "1")
    made.stop(_NODE)
    return made


@contextmanager
def agent(mesh: Mesh, capabilities: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the agent on a node that has nothing of ours, as root with these capabilities alone."""
    (part,) = mesh.parts(_NODE)
    command = mesh.world.command(part)
    flags = [word for word in command if word.startswith(("--bpffs=", "--state-dir="))]
    assert _LEFT in mesh.run(_NODE, CLI, "cleanup", *flags)
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    bound = ("setpriv", "--bounding-set", kept, "--inh-caps", "-all", "--no-new-privs")
    process = mesh.begin(_NODE, *bound, *command)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _is_well(mesh: Mesh) -> bool:
    return mesh.attempt(_NODE, CLI, "status", "--apiserver=none").returncode == 0


def test_the_capabilities_of_the_chart_are_enough(mesh: Mesh) -> None:
    with agent(mesh, _given()):
        eventually("the agent is well", partial(_is_well, mesh))


@pytest.mark.parametrize("missing", [name for name in _given() if name != _FASTER])
def test_without_one_of_them_the_agent_ends_and_names_what_it_needs(
    mesh: Mesh, capfd: pytest.CaptureFixture[str], missing: str
) -> None:
    with agent(mesh, [name for name in _given() if name != missing]) as process:
        assert process.wait(timeout=20) == 1
    said = capfd.readouterr().err
    assert "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON" in said


def test_without_perfmon_the_agent_works_all_the_same(mesh: Mesh) -> None:
    assert _FASTER in _given()
    with agent(mesh, [name for name in _given() if name != _FASTER]):
        eventually("the agent is well", partial(_is_well, mesh))

"""Whatever happens to the command that makes a sandbox: what it made can be taken away."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from clustermesh.sandbox import process, remains
from clustermesh.sandbox.daemons import load
from clustermesh.sandbox.remains import Remains

from .conftest import NewMesh
from .mesh import CLI, cli, eventually, service
from .watches import Ping

STAGES: dict[str, Callable[[Remains], bool]] = {
    "the first namespace": lambda left: bool(left.mounts),
    "half of the namespaces": lambda left: len(left.mounts) > 8,
    "the first process": lambda left: bool(left.processes),
    "half of the processes": lambda left: len(left.processes) > 8,
}


@pytest.fixture
def name(sandbox_name: Callable[[str], str]) -> Iterator[str]:
    chosen = sandbox_name("crash")
    yield chosen
    remains.down(chosen)


@pytest.mark.parametrize("stage", STAGES)
def test_down_clears_away_what_a_killed_up_left(name: str, stage: str) -> None:
    _kill_up_at(name, STAGES[stage])

    cli("sandbox", "down", "--name", name)

    left = remains.remains(name)
    assert not left, left


def test_the_next_up_clears_away_what_a_killed_one_left(name: str) -> None:
    _kill_up_at(name, STAGES["half of the processes"])
    before = remains.remains(name).processes

    cli("sandbox", "up", "--name", name, "--nodes=1", "--pods=1")

    assert cli("sandbox", "status", "--name", name)
    assert not set(before) & set(remains.remains(name).processes)


def test_down_ends_every_process_and_takes_every_mount_away(name: str) -> None:
    cli("sandbox", "up", "--name", name)
    there = remains.remains(name)
    processes = [part.process for part in load(name).parts()]
    assert len(processes) == 2 * (2 + 2 + 4)
    # Beside them an agent may be running `nft` for a moment.
    assert {one.pid for one in processes if one} <= set(there.processes)
    assert len(there.mounts) == 1 + 2 * (1 + 2 + 4) + 4  # namespaces, and a bpffs for each node

    cli("sandbox", "down", "--name", name)

    assert not remains.remains(name)
    assert not [one for one in processes if one is None or process.is_running(one)]
    cli("sandbox", "down", "--name", name)  # and it is no mistake to say it again


def test_two_sandboxes_side_by_side_do_not_meet(new_mesh: NewMesh) -> None:
    """They have the same names and addresses inside; each is a world of its own."""
    first = new_mesh("first", "--nodes=1", "--pods=1")
    second = new_mesh("second", "--nodes=1", "--pods=1")
    for mesh in (first, second):
        for cluster in ("cluster1", "cluster2"):
            mesh.apply(cluster, service("echo"))
        mesh.wait_for_backends("echo", cluster1=1, cluster2=1)
    server = first.world.sandbox.cluster("cluster2").nodes[0].pods[0]

    with Ping(first, "cluster1/node1/pod1", server.addresses.v4) as ping:
        second.stop("cluster2/pods")
        second.pods_changed("cluster2")
        second.wait_for_backends("echo", cluster1=1)
        assert first.backends("cluster1/node1", "echo") == {"cluster1": 1, "cluster2": 1}
        address, _ = first.cluster_ips("cluster1", "echo")
        assert second.answers("cluster1/node1/pod1", "tcp", address, 80) == {"cluster1"}
        cli("sandbox", "down", "--name", second.name)
        assert first.answers("cluster1/node1/pod1", "tcp", address, 80) == {"cluster1", "cluster2"}
    assert ping.lost() == []
    first.wait_until_well()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--clusters=0"], "0 clusters are out of range"),
        (["up", "--name=A/b"], "is no name for a sandbox"),
        (["status", "--name=e2e-nobody"], "there is no sandbox e2e-nobody"),
        (["exec", "cluster1/node1", "--name=e2e-nobody", "--", "true"], "there is no sandbox"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments: list[str], said: str) -> None:
    lines = cli("sandbox", *arguments, code=1).splitlines()
    assert len(lines) <= 2, lines
    assert said in lines[0]


def _kill_up_at(name: str, is_reached: Callable[[Remains], bool]) -> None:
    with subprocess.Popen(
        [CLI, "sandbox", "up", "--name", name], stdout=subprocess.DEVNULL
    ) as running:
        eventually("the moment to kill it", lambda: is_reached(remains.remains(name)))
        assert running.poll() is None, "it was faster"
        running.send_signal(signal.SIGKILL)
    assert remains.remains(name)

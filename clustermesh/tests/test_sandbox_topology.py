"""Sandboxes on the real kernel: who reaches whom, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustermesh.errors import UserError
from clustermesh.sandbox import process, remains, topology
from clustermesh.sandbox.model import CGROUP, Place, Pod, Sandbox, sandbox

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

PYTHON = str(Path(__file__).parents[2])


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    for left in remains.names(tmp_path / "run"):
        remains.down(left, tmp_path / "run")


def name(suffix: str = "") -> str:
    """Of this process: several test runs on a machine do not meet."""
    return f"test-{os.getpid()}{suffix}"


def up(root: Path, suffix: str = "", *, clusters: int = 2, nodes: int = 2) -> Sandbox:
    made = sandbox(name(suffix), clusters=clusters, nodes=nodes, pods=1, root=root)
    topology.up(made)
    return made


def serve(made: Sandbox) -> None:
    """Start the pods' servers, and wait until they answer."""
    for place in made.places():
        if isinstance(place, Pod):
            who = ("--cluster", place.cluster, "--node", place.node, "--pod", place.name)
            start(made, place, "echo", "-m", "clustermesh.sandbox.echo", *who)
    deadline = time.monotonic() + 10
    for log in made.directory.rglob("echo.log"):
        while "listens" not in log.read_text():
            assert time.monotonic() < deadline, log
            time.sleep(0.01)


def start(made: Sandbox, place: Place, what: str, *arguments: str) -> process.Process:
    return process.start(
        [sys.executable, *arguments],
        namespace=made.namespace(place),
        cgroup=remains.cgroup_mount() / made.cgroup_of(place),
        log=made.home(place) / f"{what}.log",
        pid_file=made.home(place) / f"{what}.pid",
        environment={"PYTHONPATH": PYTHON},
    )


def call(made: Sandbox, caller: str, mode: str, host: object, port: int = 8080) -> dict[str, Any]:
    place = made.find(caller)
    command = [sys.executable, "-m", "clustermesh.sandbox.call", mode, str(host), str(port)]
    command += ["-o", "json", "--timeout", "1", "--seconds", "0.2"]
    done = subprocess.run(
        process.inside(
            made.namespace(place), remains.cgroup_mount() / made.cgroup_of(place), command
        ),
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHON},
    )
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_pods_of_a_cluster_reach_each_other_and_see_each_others_addresses(root: Path) -> None:
    made = up(root)
    serve(made)
    caller, callee = made.find("cluster1/node1/pod1"), made.find("cluster1/node2/pod1")
    for source, host in zip(caller.addresses, callee.addresses, strict=True):
        for mode in ("tcp", "udp"):
            report = call(made, caller.place, mode, host)
            assert report["pods"] == {"cluster1/node2/pod1": 1}
            assert report["clients"] == {str(source): 1}
        report = call(made, caller.place, "stream", host, 8081)
        assert report["failed"] == 0
        assert report["answered"] > 5
        assert report["broken"] is None


def test_nodes_reach_each_other_everywhere_and_pods_of_their_own_cluster_only(root: Path) -> None:
    made = up(root, nodes=1)
    serve(made)
    for host in made.find("cluster2/node1/pod1").addresses:
        assert call(made, "cluster2/node1", "tcp", host)["answered"] == 1
        assert call(made, "cluster1/node1/pod1", "tcp", host)["answered"] == 0
        report = call(made, "cluster1/node1", "tcp", host)
        assert report["errors"] == {"[Errno 101] Network is unreachable": 1}
    node = made.find("cluster2/node1")
    start(made, node, "server", "-m", "http.server", "--bind", "::", "8080")
    for host in node.addresses:
        deadline = time.monotonic() + 10
        while "refused" in (said := str(call(made, "cluster1/control", "tcp", host)["errors"])):
            assert time.monotonic() < deadline
        assert "unreachable" not in said


def test_two_sandboxes_live_side_by_side_and_go_down_alone(root: Path) -> None:
    one, two = up(root, "-one"), up(root, "-two")
    serve(one)
    serve(two)
    remains.down(one.name, root)
    assert not remains.remains(one.name, root)
    host = two.find("cluster1/node2/pod1").addresses.v4
    assert call(two, "cluster1/node1/pod1", "tcp", host)["failed"] == 0
    assert topology.load(two.name, root) == two
    with pytest.raises(UserError, match="there is no sandbox"):
        topology.load(one.name, root)


def test_nothing_is_left_and_going_down_twice_is_no_error(root: Path) -> None:
    before = everything()
    made = up(root)
    serve(made)
    left = remains.remains(made.name, root)
    assert len(left.processes) == 4
    assert len([m for m in left.mounts if m.name == "netns"]) == 2 * (1 + 2 + 2) + 1
    assert len([m for m in left.mounts if m.name == "bpffs"]) == 4
    assert len(left.cgroups) == 1 + 2 * (1 + 1 + 2 + 2)
    for _ in range(2):
        remains.down(made.name, root)
        assert not remains.remains(made.name, root)
    assert everything() == before


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1])
def test_one_that_was_killed_half_way_is_cleared_away(root: Path, after: float) -> None:
    before = everything()
    code = (
        "import sys, pathlib; from clustermesh.sandbox import model, topology\n"
        "topology.up(model.sandbox(sys.argv[1], root=pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, name(), str(root)]
    environment = {**os.environ, "PYTHONPATH": PYTHON}
    deadline = time.monotonic() + 10
    with subprocess.Popen(command, env=environment) as making:
        while not (root / name()).exists():
            assert time.monotonic() < deadline
        time.sleep(after)  # the point is to hit it anywhere
        making.kill()
    assert remains.remains(name(), root)
    made = up(root)  # the next one clears it away first
    serve(made)
    remains.down(made.name, root)
    assert everything() == before


def test_a_process_outlives_its_starter_and_is_found_and_stopped_by_another(root: Path) -> None:
    made = up(root, nodes=1, clusters=1)
    node = made.find("cluster1/node1")
    file = made.home(node) / "sleeper.pid"
    starter = os.fork()
    if starter == 0:
        start(made, node, "sleeper", "-c", "import time; time.sleep(1000)")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(starter, 0)
    begun = process.read(file)
    assert begun is not None
    assert os.getsid(begun.pid) == begun.pid
    deadline = time.monotonic() + 10
    here = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{begun.pid}/ns/net").readlink() == here:
        assert time.monotonic() < deadline
    assert f"{made.cgroup_of(node)}\n" in Path(f"/proc/{begun.pid}/cgroup").read_text()
    process.stop(begun, signal.SIGTERM)
    assert process.read(file) is None
    process.stop(begun)  # not an error


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(root: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        file = root / name() / "node.pid"
        file.parent.mkdir(parents=True)
        file.write_text(f"{stranger.pid} 1\n")
        assert process.read(file) is None
        remains.down(name(), root)
        assert stranger.poll() is None
        stranger.kill()


def everything() -> list[list[str]]:
    """What of any test of this process is on the machine: mounts, cgroups, processes."""
    groups = remains.cgroup_mount() / CGROUP
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    processes = [
        entry.read_text().strip()
        for entry in Path("/proc").glob("[0-9]*/cgroup")
        if name() in entry.read_text()
    ]
    return [
        [line for line in mounts if name() in line],
        sorted(str(group) for group in groups.rglob(f"{name()}*")) if groups.is_dir() else [],
        processes,
        namespaces(),
    ]


def namespaces() -> list[str]:
    """The network namespaces that are mounted anywhere or have a process."""
    listed = subprocess.run(
        ["lsns", "--type", "net", "--noheadings", "--output", "NS,NSFS"],
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(line.strip() for line in listed.stdout.splitlines() if name() in line)

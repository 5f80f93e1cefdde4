"""A sandbox to measure in: brought up as a user would, and taken down whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from clustermesh.sandbox import process
from clustermesh.sandbox.daemons import World, load
from clustermesh.sandbox.model import Cluster, Node, Place
from clustermesh.sandbox.process import Process
from clustermesh.sandbox.remains import cgroup_mount

_REPOSITORY: Final = Path(__file__).parents[2]
_COMMAND: Final = Path(sys.executable).with_name("clustermesh")


class Bed:
    """A sandbox that is up."""

    def __init__(self, world: World) -> None:
        self.world: Final = world
        self.sandbox: Final = world.sandbox

    def cluster(self, number: int) -> Cluster:
        """The cluster of that number, from 1."""
        return self.sandbox.members[number - 1]

    def node(self, cluster: int, number: int = 1) -> Node:
        """The node of these numbers, from 1."""
        return self.cluster(cluster).nodes[number - 1]

    def cgroup(self, place: Place) -> Path:
        """The cgroup of a place."""
        return cgroup_mount() / self.sandbox.cgroup_of(place)

    def unbalanced_cgroup(self) -> Path:
        """A cgroup that no agent has attached to; it goes with the sandbox."""
        path = cgroup_mount() / self.sandbox.cgroup / "unbalanced"
        path.mkdir(exist_ok=True)
        return path

    def certificates(self, cluster: Cluster) -> Path:
        """The directory of a cluster's certificates."""
        return self.sandbox.directory / cluster.name / "certs"

    def stop(self, name: str) -> None:
        """Stop the parts called so, as `clustermesh sandbox stop` does."""
        for part in self.world.find(name):
            part.stop()

    def start(self, name: str) -> Process:
        """Start the one part called so."""
        (part,) = self.world.find(name)
        part.start()
        return self.running(name)

    def running(self, name: str) -> Process:
        """The process of the one part called so."""
        (part,) = self.world.find(name)
        assert part.process is not None, f"{name} runs"
        return part.process

    def run(self, place: Place, *command: str, timeout: float = 120.0) -> str:
        """Run a command inside of `place`, and return what it prints."""
        done = subprocess.run(
            self._inside(place, command),
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=timeout,
        )
        return done.stdout

    def run_module(self, place: Place, name: str, *arguments: str, timeout: float = 120.0) -> Any:
        """Run a module of `inside/`, and return the JSON that it prints."""
        command = [sys.executable, "-m", f"e2e.bench.inside.{name}", *arguments]
        return json.loads(self.run(place, *command, timeout=timeout))

    @contextmanager
    def serving(self, place: Place, *command: str, ready: str) -> Iterator[None]:
        """Have a command run inside of `place`, from when a line of it begins with `ready`."""
        with subprocess.Popen(
            self._inside(place, command), cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None, "it is a pipe"
                for line in server.stdout:
                    if line.startswith(ready):
                        break
                else:
                    raise RuntimeError(f"{' '.join(command)} ended before it was ready")
                yield
            finally:
                server.kill()

    @contextmanager
    def server(self, place: Place) -> Iterator[None]:
        """Have `inside/server.py` run inside of `place`."""
        command = (sys.executable, "-m", "e2e.bench.inside.server")
        with self.serving(place, *command, ready="ready"):
            yield

    def _inside(self, place: Place, command: tuple[str, ...]) -> list[str]:
        return process.inside(self.sandbox.namespace(place), self.cgroup(place), command)


@contextmanager
def bed(
    name: str,
    *,
    clusters: int = 2,
    nodes: int = 1,
    pods: int = 1,
    routing: str = "tunnel",
    encryption: str = "none",
    agent: Sequence[str] = (),
) -> Iterator[Bed]:
    """Bring up a sandbox; `agent` are more settings of its agents."""
    sandbox_name = f"bench-{name}"
    sizes = {"clusters": clusters, "nodes": nodes, "pods": pods, "routing": routing}
    flags = [f"--{flag}={value}" for flag, value in sizes.items()]
    flags += [f"--encryption={encryption}", *(f"--agent={setting}" for setting in agent)]
    try:
        _clustermesh("up", f"--name={sandbox_name}", *flags)
        yield Bed(load(sandbox_name))
    finally:
        _clustermesh("down", f"--name={sandbox_name}")


def seconds_to_up(*, clusters: int, nodes: int, pods: int) -> float:
    """The seconds that the command takes to bring up a sandbox, its own start included."""
    started = time.monotonic()
    with bed("up", clusters=clusters, nodes=nodes, pods=pods):
        return time.monotonic() - started


def until(condition: Callable[[], bool], what: str, *, timeout: float, every: float) -> None:
    """
    Wait until `condition()`.

    Raises:
        TimeoutError: it did not come true; `what` says what was waited for.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {timeout:g} s: {what}")
        time.sleep(every)


def _clustermesh(verb: str, *arguments: str) -> None:
    command = [str(_COMMAND), "sandbox", verb, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

"""
What runs in a sandbox: real etcd servers, apiservers, agents and pods, as separate processes.

Nothing here keeps running with the command that started them. Where a process is, and whether it
lives, is in the sandbox's directory.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

import yaml

import certs
from certs.store import write_atomically
from clustermesh.cli.client import AGENT, APISERVER
from clustermesh.cli.status import Report, gather
from clustermesh.errors import UserError

from . import process, topology
from .manifests import Manifests
from .model import Cluster, Node, Place, Pod, Sandbox
from .namespace import run_inside
from .process import Process
from .remains import cgroup_mount

_ETCD_PORT: Final = 2379
_POLL: Final = 0.1  # seconds
_LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT|\{|\S+ of \S+ in \S+ listens$")
"""Of a daemon, etcd, a pod."""


class Part:
    """A process of the sandbox, by what a user calls it: `cluster1/etcd`, `cluster1/node1`."""

    def __init__(self, world: World, name: str, program: str, place: Place) -> None:
        self.name: Final = name
        self.program: Final = program  # etcd, apiserver, agent or echo
        self.place: Final = place
        self._world = world
        self._home = world.sandbox.home(place)

    @property
    def log(self) -> Path:
        """What it says."""
        return self._home / f"{self.program}.log"

    @property
    def process(self) -> Process | None:
        """None when it does not run."""
        return process.read(self._pid_file)

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.process is None:
            sandbox = self._world.sandbox
            process.start(
                self._world.command(self),
                namespace=sandbox.namespace(self.place),
                cgroup=cgroup_mount() / sandbox.cgroup_of(self.place),
                log=self.log,
                pid_file=self._pid_file,
                environment={"PYTHONUNBUFFERED": "1"},
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, if it runs."""
        running = self.process
        if running is not None:
            process.stop(running, number)

    def report(self) -> Report:
        """What it says of itself, and what is wrong with that; etcd and pods say nothing."""
        if self.process is None:
            return Report({}, [f"{self.program} does not run{self._last_words()}"])
        if self.program == "agent":
            ask = partial(gather, AGENT, "none")
        elif self.program == "apiserver":
            ask = partial(gather, "none", APISERVER)
        else:
            return Report({}, [])
        return run_inside(self._world.sandbox.namespace(self.place), ask)

    def _last_words(self) -> str:
        """The error that it ended with, if there was one: what is no ordinary line of a log."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return "" if not lines or _LOG_LINE.match(lines[-1]) else f": {lines[-1]}"

    @property
    def _pid_file(self) -> Path:
        return self._home / f"{self.program}.pid"


class World:
    """A sandbox that is there, and what can be done with it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox: Final = sandbox

    def parts(self) -> Iterator[Part]:
        """Everything that should run, in the order in which to start it."""
        for cluster in self.sandbox.members:
            yield Part(self, f"{cluster.name}/etcd", "etcd", cluster.control)
        for cluster in self.sandbox.members:
            yield Part(self, f"{cluster.name}/apiserver", "apiserver", cluster.control)
            for node in cluster.nodes:
                yield Part(self, node.place, "agent", node)
                for pod in node.pods:
                    yield Part(self, pod.place, "echo", pod)

    def find(self, name: str) -> list[Part]:
        """
        The parts called CLUSTER, or CLUSTER/etcd, /apiserver, /pods, /NODE or /NODE/POD.

        Raises:
            UserError: there is no such thing.
        """
        cluster, _, rest = name.partition("/")
        self.sandbox.cluster(cluster)
        parts = [part for part in self.parts() if part.place.cluster == cluster]
        if rest == "pods":
            parts = [part for part in parts if part.program == "echo"]
        elif rest:
            parts = [part for part in parts if part.name == name]
        if not parts:
            raise UserError(
                f"there is no {name} in sandbox {self.sandbox.name}",
                hint="name CLUSTER, or CLUSTER/etcd, /apiserver, /pods, /NODE, /NODE/POD",
            )
        return parts

    def command(self, part: Part) -> Sequence[str]:
        """The command line of a part."""
        place = part.place
        if isinstance(place, Pod):
            identity = ["--cluster", place.cluster, "--node", place.node, "--pod", place.name]
            return [sys.executable, "-m", "clustermesh.sandbox.echo", *identity]
        cluster = self.sandbox.cluster(place.cluster)
        if isinstance(place, Node):
            return self._agent(cluster, place)
        return self._etcd(cluster) if part.program == "etcd" else self._apiserver(cluster)

    def prepare(self) -> None:
        """Make certificates, manifests and the agents' settings. Nothing has been started yet."""
        now = datetime.now(UTC)
        certs.init_authority(self._authority, now=now)
        for cluster in self.sandbox.members:
            certs.init(
                self._certs(cluster),
                cluster.name,
                now=now,
                ca_directory=self._authority,
                server_names=[str(ip) for ip in cluster.control.addresses],
            )
            self._clusters_dir(cluster).mkdir()
            self._write_client(self._local_config(cluster), cluster, "local")
            self.manifests(cluster).create(lambda _: True)

    def manifests(self, cluster: Cluster) -> Manifests:
        """The Kubernetes side of a cluster."""
        return Manifests(self._manifests_dir(cluster), cluster)

    def connect(self, first: Cluster, second: Cluster) -> None:
        """Let each of the two read the other."""
        for reader, read in ((first, second), (second, first)):
            certs.init(
                self._certs(read),
                read.name,
                now=datetime.now(UTC),
                ca_directory=self._authority,
                remotes=[reader.name],
            )
            self._write_client(
                self._clusters_dir(reader) / read.name, read, f"remote-{reader.name}"
            )

    def disconnect(self, first: Cluster, second: Cluster) -> None:
        """Let none of the two read the other any more."""
        for reader, read in ((first, second), (second, first)):
            (self._clusters_dir(reader) / read.name).unlink(missing_ok=True)

    def pods_changed(self, clusters: Iterable[Cluster]) -> None:
        """Notice which pods run, as kubelets would."""
        for cluster in clusters:
            self.manifests(cluster).update(self.is_running)

    def is_running(self, pod: Pod) -> bool:
        """Whether the pod's server runs."""
        return Part(self, pod.place, "echo", pod).process is not None

    def reports(self) -> dict[str, Report]:
        """What every part says of itself, by its name."""
        parts = list(self.parts())
        with ThreadPoolExecutor(8) as pool:
            return dict(zip((p.name for p in parts), pool.map(Part.report, parts), strict=True))

    def wait_until_well(self, timeout: float, told: Callable[[int, int], None]) -> None:
        """
        Wait until no part has anything to complain about.

        Args:
            told: is called with how many of how many are well.

        Raises:
            UserError: some part ended, or is not well after `timeout` seconds; it says why.
        """
        deadline = time.monotonic() + timeout
        waiting = list(self.parts())
        count = len(waiting)
        while waiting:
            with ThreadPoolExecutor(8) as pool:
                reports = list(pool.map(Part.report, waiting))
            troubles = [
                (p, r.troubles) for p, r in zip(waiting, reports, strict=True) if r.troubles
            ]
            waiting = [part for part, _ in troubles]
            told(count - len(waiting), count)
            for part, found in troubles:
                if part.process is None or time.monotonic() > deadline:
                    raise UserError(f"{part.name}: {found[0]}", hint=f"its log is {part.log}")
            time.sleep(_POLL if waiting else 0)

    def _etcd(self, cluster: Cluster) -> Sequence[str]:
        store = self._certs(cluster)
        here = f"https://{cluster.control.addresses.v4}:{_ETCD_PORT}"
        peer = "http://127.0.0.1:2380"
        flags = {
            "name": cluster.name,
            "data-dir": self.sandbox.home(cluster.control) / "etcd",
            "listen-client-urls": f"{here},https://127.0.0.1:{_ETCD_PORT}",
            "advertise-client-urls": here,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"{cluster.name}={peer}",
            # Random, so that a data directory that was lost can be told from the old one.
            "initial-cluster-token": uuid4().hex,
            "client-cert-auth": "true",
            "trusted-ca-file": store / "ca.crt",
            "cert-file": store / "server.crt",
            "key-file": store / "server.key",
            "logger": "zap",
            "log-level": "warn",
        }
        return [_program("etcd"), *(f"--{flag}={value}" for flag, value in flags.items())]

    def _apiserver(self, cluster: Cluster) -> Sequence[str]:
        store = self._certs(cluster)
        return [
            _program("clustermesh-apiserver"),
            f"--cluster-name={cluster.name}",
            f"--cluster-id={cluster.id}",
            f"--source=dir:{self._manifests_dir(cluster)}",
            f"--etcd-endpoints=https://127.0.0.1:{_ETCD_PORT}",
            f"--etcd-ca={store / 'ca.crt'}",
            f"--etcd-cert={store / 'admin.crt'}",
            f"--etcd-key={store / 'admin.key'}",
            f"--clusters-dir={self._clusters_dir(cluster)}",
        ]

    def _agent(self, cluster: Cluster, node: Node) -> Sequence[str]:
        return [
            _program("clustermesh-agent"),
            f"--cluster-name={cluster.name}",
            f"--cluster-id={cluster.id}",
            f"--node-name={node.name}",
            f"--local-etcd-config={self._local_config(cluster)}",
            f"--clusters-dir={self._clusters_dir(cluster)}",
            f"--routing={self.sandbox.routing}",
            f"--bpffs={self.sandbox.bpffs(node)}",
            f"--cgroup={cgroup_mount() / self.sandbox.cgroup_of(node)}",
            f"--state-dir={self.sandbox.state(node)}",
        ]

    def _write_client(self, path: Path, cluster: Cluster, user: str) -> None:
        store = self._certs(cluster)
        content = {
            "endpoints": [f"https://{cluster.control.addresses.v4}:{_ETCD_PORT}"],
            "trusted-ca-file": str(store / "ca.crt"),
            "cert-file": str(store / f"{user}.crt"),
            "key-file": str(store / f"{user}.key"),
        }
        text = yaml.safe_dump(content, sort_keys=False).encode()
        write_atomically({path: (text, 0o644)})

    @property
    def _authority(self) -> Path:
        return self.sandbox.directory / "ca"

    def _certs(self, cluster: Cluster) -> Path:
        return self.sandbox.directory / cluster.name / "certs"

    def _clusters_dir(self, cluster: Cluster) -> Path:
        return self.sandbox.directory / cluster.name / "clusters"

    def _manifests_dir(self, cluster: Cluster) -> Path:
        return self.sandbox.directory / cluster.name / "manifests"

    def _local_config(self, cluster: Cluster) -> Path:
        return self.sandbox.directory / cluster.name / "etcd.yaml"


def load(name: str) -> World:
    """
    The sandbox `name`.

    Raises:
        UserError: there is none.
    """
    return World(topology.load(name))


def _program(name: str) -> str:
    """The path of a program: the one beside this Python first."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UserError(
            f"there is no program {name}", hint="apt-get install etcd-server, or make setup"
        )
    return found


def search_path() -> str:
    """PATH with our own commands in it, for what a user runs inside."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"

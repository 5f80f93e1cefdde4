"""
What runs in a sandbox: real etcd servers, apiservers, agents and pods, as separate processes.
With real API servers, also those, with an etcd and controllers for each; and then it is the objects
of the chart that say how our own are started.

Nothing here keeps running with the command that started them. Where a process is, and whether it
lives, is in the sandbox's directory.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import yaml

import certs
from certs.store import write_atomically
from clustermesh.cli.client import AGENT, APISERVER
from clustermesh.cli.status import Report, gather
from clustermesh.errors import UserError
from clustermesh.model import IPAddress

from . import process, topology
from .kube.control_plane import ControlPlane
from .kube.objects import Objects
from .kube.programs import kube_assets
from .kube.release import ACCOUNT, NAMESPACE, Release, pod_name
from .manifests import UDP_PORT, Kubernetes, Manifests, pod_key
from .model import Cluster, Control, Node, Place, Pod, Sandbox
from .namespace import run_inside
from .process import Process
from .remains import cgroup_mount

T = TypeVar("T")

_ETCD_PORT: Final = 2379
_POLL: Final = 0.1  # seconds
_FORGOTTEN_WITHIN: Final = 10.0  # seconds
_POD_WITHIN: Final = 10.0  # seconds for a pod to become ready
_LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT|\{|[IWE]\d{4} |\S+ of \S+ in \S+ listens$")
"""Of a daemon, etcd, Kubernetes, a pod."""

API_SERVER: Final = "kube-apiserver"
_KUBE_ETCD: Final = "kube-etcd"
_CONTROLLERS: Final = "kube-controller-manager"
_KUBELET: Final = "kubelet"
_LOOPBACK: Final = IPv4Address("127.0.0.1")


class Part:
    """A process of the sandbox, by what a user calls it: `cluster1/etcd`, `cluster1/node1`."""

    def __init__(self, world: World, name: str, program: str, place: Place) -> None:
        self.name: Final = name
        self.program: Final = program  # etcd, apiserver, agent, echo, or one of Kubernetes
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
                # A sandbox that is itself in a pod is no part of that pod's cluster.
                environment={"PYTHONUNBUFFERED": "1", "KUBERNETES_SERVICE_HOST": ""},
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, if it runs."""
        running = self.process
        if running is not None:
            process.stop(running, number)

    def report(self) -> Report:
        """What it says of itself, and what is wrong with that; only our daemons say anything."""
        running = self.process
        if running is None:
            return Report({}, [f"{self.program} does not run{self._last_words()}"])
        if self.program == "echo":
            is_ready = process.is_bound(running, UDP_PORT)
            return Report({}, [] if is_ready else ["echo does not listen yet"])
        if self.program == "agent":
            ask = partial(gather, AGENT, "none")
        elif self.program == "apiserver":
            ask = partial(gather, "none", self._world.apiserver_url(self.place))
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

    @property
    def has_api_servers(self) -> bool:
        """Whether each cluster has a real API server."""
        return self.sandbox.api == "kube"

    def parts(self) -> Iterator[Part]:
        """Everything that should run, in the order in which to start it."""
        for cluster in self.sandbox.members:
            yield self._control(cluster, "etcd")
        if self.has_api_servers:
            yield from self.kubernetes_parts()
        for cluster in self.sandbox.members:
            yield self._control(cluster, "apiserver")
            for node in cluster.nodes:
                yield Part(self, node.place, "agent", node)
                for pod in node.pods:
                    yield Part(self, pod.place, "echo", pod)

    def kubernetes_parts(self) -> Iterator[Part]:
        """What Kubernetes itself runs, in the order in which to start it."""
        for program in (_KUBE_ETCD, API_SERVER, _CONTROLLERS, _KUBELET):
            for cluster in self.sandbox.members:
                yield self._control(cluster, program)

    def start(self, parts: Iterable[Part]) -> None:
        """
        Start what does not run of `parts`.

        Raises:
            UserError: there are controllers among them, and their API server does not answer.
        """
        wanted = list(parts)
        for part in wanted:
            if part.program == _CONTROLLERS:  # they would give up after ten seconds
                self._objects(self.sandbox.cluster(part.place.cluster)).wait_until_ready()
            part.start()
        self._wait_for_pods(part for part in wanted if part.program == "echo")

    def _wait_for_pods(self, parts: Iterable[Part]) -> None:
        """A pod is ready when it answers, and not before: nobody may call it until then."""
        deadline = time.monotonic() + _POD_WITHIN
        for part in parts:
            while part.report().troubles and time.monotonic() < deadline:
                time.sleep(_POLL / 10)

    def find(self, name: str) -> list[Part]:
        """
        The parts called CLUSTER, or CLUSTER/etcd, /apiserver, /pods, /NODE or /NODE/POD; with real
        API servers also CLUSTER/kube-etcd, /kube-apiserver, /kube-controller-manager or /kubelet.

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
        if self.has_api_servers:
            return self._command_of_kubernetes(part.program, cluster, place)
        if isinstance(place, Node):
            return self._agent(cluster, place)
        return self._etcd(cluster) if part.program == "etcd" else self._apiserver(cluster)

    def prepare(self) -> None:
        """Make certificates, manifests and the agents' settings. Nothing has been started yet."""
        now = datetime.now(UTC)
        certs.init_authority(self._authority, now=now)
        if self.has_api_servers:
            self._prepare_kubernetes()
            return
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

    def start_kubernetes(self) -> None:
        """
        Start the API servers and controllers, and tell them of nodes and pods.

        Raises:
            UserError: an API server does not answer.
        """
        self.start(part for part in self.kubernetes_parts() if part.program != _KUBELET)
        for cluster in self.sandbox.members:
            self._objects(cluster).create(lambda _: True)

    def install(self) -> None:
        """
        Install the chart in all clusters, and read what it wants to be started.

        Raises:
            UserError: helm; with its reason.
        """

        def install(cluster: Cluster) -> None:
            self._release(cluster).install(self._authority)
            self._release(cluster).sync()

        with ThreadPoolExecutor(len(self.sandbox.members)) as pool:
            list(pool.map(lambda cluster: self._in_control(cluster, install), self.sandbox.members))

    def sync(self, cluster: Cluster) -> None:
        """Have the files of the cluster's pods as its API server has them now."""
        self._in_control(cluster, lambda one: self._release(one).sync())

    def manifests(self, cluster: Cluster) -> Kubernetes:
        """The Kubernetes side of a cluster."""
        if self.has_api_servers:
            return self._objects(cluster)
        return Manifests(self._manifests_dir(cluster), cluster)

    def pod_of(self, place: Place) -> tuple[str, str]:
        """The namespace and name of the Pod that a real API server knows a place by."""
        if isinstance(place, Pod):
            return pod_key(place)
        return NAMESPACE, pod_name(place)

    def environment(self, place: Place) -> Mapping[str, str]:
        """
        The variables of a command inside of a place, on top of the caller's.

        On a node, `show maps`, `cleanup` and the rest are about that node, and not the machine.
        """
        found = {"PATH": search_path()}
        if isinstance(place, Node):
            if self.has_api_servers:
                cluster = self.sandbox.cluster(place.cluster)
                found |= self._release(cluster).environment(place, "agent")
            found["CLUSTERMESH_BPFFS"] = str(self.sandbox.bpffs(place))
            found["CLUSTERMESH_STATE_DIR"] = str(self.sandbox.state(place))
            found["CLUSTERMESH_CLUSTERS_DIR"] = str(self.clusters_dir(place))
        elif isinstance(place, Control):
            found |= self.kubectl_environment(self.sandbox.cluster(place.cluster))
        return found

    def kubectl_environment(self, cluster: Cluster) -> Mapping[str, str]:
        """
        The variables of a shell in the cluster's control plane, for kubectl, helm and ourselves.

        They know all clusters as contexts; this one is the current. Empty without API servers.
        """
        if not self.has_api_servers:
            return {}
        plane = self.plane(cluster)
        others = [self.plane(one).kubeconfig for one in self.sandbox.members if one != cluster]
        return {
            **self._release(cluster).environment(cluster.control, "apiserver"),
            "KUBECONFIG": ":".join(map(str, [plane.kubeconfig, *others])),
            "KUBECACHEDIR": str(plane.cache),
            "NO_PROXY": "*",
            "PATH": f"{plane.programs}:{plane.helm.parent}:{search_path()}",
        }

    def clusters_dir(self, node: Node) -> Path:
        """Where the agent of a node looks for the files of the other clusters."""
        cluster = self.sandbox.cluster(node.cluster)
        if self.has_api_servers:
            return self._release(cluster).clusters_dir(node)
        return self._clusters_dir(cluster)

    def apiserver_url(self, place: Place) -> str:
        """Where the apiserver of a control plane says how it is."""
        if not self.has_api_servers or not isinstance(place, Control):
            return APISERVER
        release = self._release(self.sandbox.cluster(place.cluster))
        return release.environment(place, "apiserver")["CLUSTERMESH_APISERVER"]

    def connect(self, first: Cluster, second: Cluster) -> None:
        """Let each of the two read the other."""
        if self.has_api_servers:
            self._clustermesh("connect", first, second)
            return
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
        if self.has_api_servers:
            self._clustermesh("disconnect", first, second)
            return
        for reader, read in ((first, second), (second, first)):
            (self._clusters_dir(reader) / read.name).unlink(missing_ok=True)

    def wait_until_forgotten(self, first: Cluster, second: Cluster) -> None:
        """Wait, for some seconds at most, until no agent of the two reads the other any more."""
        deadline = time.monotonic() + _FORGOTTEN_WITHIN
        for reader, read in ((first, second), (second, first)):
            for node in reader.nodes:
                agent = Part(self, node.place, "agent", node)
                while time.monotonic() < deadline and any(
                    remote.cluster == read.name
                    for said in agent.report().statuses()
                    for remote in said.remotes
                ):
                    time.sleep(_POLL)

    def pods_changed(self, clusters: Iterable[Cluster]) -> None:
        """Notice which pods run, as kubelets would: whom nobody answers say it later."""
        for cluster in clusters:
            if self.has_api_servers:
                if self._control(cluster, API_SERVER).process is None:
                    continue
                self._objects(cluster).wait_until_ready()
            self.manifests(cluster).update(self.is_running)

    def is_running(self, pod: Pod) -> bool:
        """Whether the pod's server answers."""
        return not Part(self, pod.place, "echo", pod).report().troubles

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
        here = f"https://{host(cluster.address)}:{_ETCD_PORT}"
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
            *(["--mirror"] if self.sandbox.mirror else []),
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
            f"--encryption={self.sandbox.encryption}",
            f"--encryption-sockets={self.sandbox.sockets(node)}",
            f"--bpffs={self.sandbox.bpffs(node)}",
            f"--cgroup={cgroup_mount() / self.sandbox.cgroup_of(node)}",
            f"--state-dir={self.sandbox.state(node)}",
            f"--mesh-node-dir={self._manifests_dir(cluster)}",
            *(["--mirrored"] if self.sandbox.mirror else []),
            *(f"--{setting}" for setting in self.sandbox.settings(cluster)),
        ]

    def _control(self, cluster: Cluster, program: str) -> Part:
        return Part(self, f"{cluster.name}/{program}", program, cluster.control)

    def plane(self, cluster: Cluster) -> ControlPlane:
        """The files of a cluster's Kubernetes, with real API servers."""
        return ControlPlane(
            directory=self.sandbox.home(cluster.control) / "kubernetes",
            name=cluster.name,
            address=cluster.control.addresses.v4,
            programs=kube_assets(),
            service_cidrs=[str(cidr) for cidr in cluster.service_cidrs],
            etcd_address=_LOOPBACK,  # nobody has to log in to it
        )

    def _release(self, cluster: Cluster) -> Release:
        return Release(self.sandbox, cluster, self.plane(cluster))

    def _in_control(self, cluster: Cluster, do: Callable[[Cluster], T]) -> T:
        return run_inside(self.sandbox.namespace(cluster.control), lambda: do(cluster))

    def _prepare_kubernetes(self) -> None:
        for cluster in self.sandbox.members:
            plane = self.plane(cluster)
            plane.directory.mkdir()
            authority = plane.prepare()
            plane.write_account(authority, NAMESPACE, ACCOUNT)
            plane.write_kubelet(authority, (node.addresses.v4 for node in cluster.nodes))

    def _command_of_kubernetes(self, program: str, cluster: Cluster, place: Place) -> Sequence[str]:
        plane = self.plane(cluster)
        match program:
            case "kube-etcd":
                return plane.etcd()
            case "kube-apiserver":
                return plane.apiserver()
            case "kube-controller-manager":
                return plane.controller_manager()
            case "kubelet":
                module = "clustermesh.sandbox.kube.kubelet"
                return [sys.executable, "-m", module, self.sandbox.name, cluster.name]
        assert not isinstance(place, Pod)
        command, *arguments = self._release(cluster).command(place, program)
        return [_program(command), *arguments]

    def _clustermesh(self, verb: str, first: Cluster, second: Cluster) -> None:
        """`clustermesh VERB`, as a user would type it in the control plane of `first`."""
        contexts = ("--context", first.name, "--destination-context", second.name)

        def run(cluster: Cluster) -> None:
            ran = subprocess.run(
                [_program("clustermesh"), verb, *contexts],
                env={**os.environ, **self.kubectl_environment(cluster)},
                capture_output=True,
                text=True,
                check=False,
            )
            if ran.returncode != 0:
                said = " ".join(f"{ran.stdout} {ran.stderr}".split())
                raise UserError(f"clustermesh {verb}: {said}")

        self._in_control(first, run)
        for cluster in (first, second):
            self.sync(cluster)

    def _objects(self, cluster: Cluster) -> Objects:
        namespace = self.sandbox.namespace(cluster.control)
        return Objects(self.plane(cluster), cluster, namespace)

    def _write_client(self, path: Path, cluster: Cluster, user: str) -> None:
        store = self._certs(cluster)
        content = {
            "endpoints": [f"https://{host(cluster.address)}:{_ETCD_PORT}"],
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


def host(ip: IPAddress) -> str:
    """An address as it stands in a URL."""
    return f"[{ip}]" if ip.version == 6 else str(ip)


def search_path() -> str:
    """PATH with our own commands in it, for what a user runs inside."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"

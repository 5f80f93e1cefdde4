"""
A sandbox as a test sees it: clusters that are up, and what can be asked of them and done to them.

Its processes are the real ones, and what the kernel holds is read from the kernel. Whatever takes
its time is polled for with a deadline: see `eventually`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from agent.kernel import inspect
from clustermesh.cli.client import AGENT, get
from clustermesh.cli.maps import read_maps
from clustermesh.model import L4Address
from clustermesh.sandbox import process
from clustermesh.sandbox.daemons import Part, World, load, search_path
from clustermesh.sandbox.model import Node
from clustermesh.sandbox.namespace import run_inside
from clustermesh.sandbox.remains import cgroup_mount

T = TypeVar("T")

CLI: Final = str(Path(sys.executable).with_name("clustermesh"))
WITHIN: Final = 20.0  # seconds: many times what anything needs, for a machine that is busy
PATIENCE: Final = float(os.environ.get("CLUSTERMESH_TEST_PATIENCE", "1"))
"""How many times as long to wait for whatever is waited for: for a machine that is emulated."""
_POLL: Final = 0.02

Report = dict[str, Any]


def eventually(what: str, look: Callable[[], T], timeout: float = WITHIN) -> T:
    """What `look` gives once it is true. An AssertionError inside of it means: not yet."""
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        try:
            if found := look():
                return found
            last = repr(found)
        except AssertionError as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s; at last: {last}")
        time.sleep(_POLL)


def service(
    name: str,
    *,
    ports: Sequence[Mapping[str, Any]] = (),
    selector: Mapping[str, str] | None = None,
    is_global: bool = True,
    **spec: Any,
) -> dict[str, Any]:
    """
    A Service that the pods of its cluster answer.

    Args:
        selector: None means all pods, an empty one means none.
        spec: fields of `spec`, and `affinity` and `shared`, which are annotations.
    """
    annotations = {"service.cilium.io/global": "true"} if is_global else {}
    for key in ("affinity", "shared"):
        if key in spec:
            annotations[f"service.cilium.io/{key}"] = spec.pop(key)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {
            "selector": {"app": "echo"} if selector is None else selector,
            "ports": list(ports or ECHO_PORTS),
            **spec,
        },
    }


ECHO_PORTS: Final = (
    {"name": "http", "port": 80, "targetPort": "http"},
    {"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"},
    {"name": "stream", "port": 81, "targetPort": "stream"},
)


class Mesh:
    """Clusters that are up. Places and parts are named as for `clustermesh sandbox`."""

    def __init__(self, world: World) -> None:
        self.world: Final = world
        self.name: Final = world.sandbox.name

    @property
    def nodes(self) -> list[Node]:
        """All nodes of all clusters."""
        return [node for cluster in self.world.sandbox.members for node in cluster.nodes]

    def node(self, place: str) -> Node:
        """The node of that name."""
        found = self.world.sandbox.find(place)
        assert isinstance(found, Node)
        return found

    def apply(self, cluster: str, *objects: Mapping[str, Any]) -> None:
        """Apply Kubernetes objects to a cluster."""
        self._with_file(self._manifests(cluster).apply, objects)

    def delete(self, cluster: str, *objects: Mapping[str, Any]) -> None:
        """Delete them again."""
        self._with_file(self._manifests(cluster).delete, objects)

    def manifests_dir(self, cluster: str) -> Path:
        """Where the cluster's apiserver reads."""
        return self.world.sandbox.directory / cluster / "manifests"

    @contextlib.contextmanager
    def applied(self, **by_cluster: Mapping[str, Any]) -> Iterator[None]:
        """Have one object in each of the clusters for a while, and see that it goes afterwards."""
        for cluster, item in by_cluster.items():
            self.apply(cluster, item)
        yield
        for cluster, item in by_cluster.items():
            self.delete(cluster, item)
        names = {(cluster, item["metadata"]["name"]) for cluster, item in by_cluster.items()}
        eventually(
            "nothing is left of the service",
            lambda: (
                not any(
                    self.frontends(node.place, name)
                    for cluster, name in names
                    for node in self.world.sandbox.cluster(cluster).nodes
                )
            ),
        )

    def parts(self, *names: str) -> list[Part]:
        """The processes that are called so."""
        return [part for name in names for part in self.world.find(name)]

    def stop(self, *names: str, kill: bool = False) -> None:
        """Stop processes, at once with `kill`. Nobody tells Kubernetes: see `pods_changed`."""
        for part in reversed(self.parts(*names)):
            part.stop(signal.SIGKILL if kill else signal.SIGTERM)

    def start(self, *names: str) -> None:
        """Start them again, and see to it that all is well."""
        for part in self.parts(*names):
            part.start()
        self.wait_until_well()

    def pods_changed(self, *clusters: str) -> None:
        """Tell Kubernetes which pods run."""
        self.world.pods_changed(self.world.sandbox.cluster(name) for name in clusters)

    def wait_until_well(self) -> None:
        """Wait until no process has anything to complain about."""
        self.world.wait_until_well(WITHIN * 2 * PATIENCE, lambda *_: None)

    def run(self, place: str, *command: str) -> str:
        """The output of a command that succeeds inside a node, pod or control plane."""
        done = self.attempt(place, *command)
        if done.returncode:
            raise AssertionError(f"{place}: {' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def attempt(
        self, place: str, *command: str, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """How a command ends inside a node, pod or control plane."""
        return subprocess.run(
            self._inside(place, command),
            check=False,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
        )

    def begin(self, place: str, *command: str) -> subprocess.Popen[str]:
        """Start a command inside a place; its output is a pipe."""
        return subprocess.Popen(
            self._inside(place, command), env=_environment(), stdout=subprocess.PIPE, text=True
        )

    @contextlib.contextmanager
    def running(self, place: str, *command: str) -> Iterator[None]:
        """Have a command run inside a place for a while."""
        with self.begin(place, *command) as running:
            try:
                yield
            finally:
                running.terminate()

    def call(self, place: str, mode: str, host: object, port: int, *flags: str) -> Report:
        """What `clustermesh.sandbox.call` reports from inside a pod."""
        command = call_command(mode, host, port, *flags)
        with self.begin(place, *command) as running:
            output, _ = running.communicate(timeout=90 * PATIENCE)
        report: Report = json.loads(output)
        return report

    def answers(self, place: str, mode: str, host: object, port: int, *flags: str) -> set[str]:
        """The clusters that answered 60 calls, none of which may fail."""
        report = self.call(place, mode, host, port, "--count=60", *flags)
        assert not report["failed"], report
        return {pod.partition("/")[0] for pod in report["pods"]}

    def connections_opened(self, place: str) -> int:
        """How often anybody in a place has tried to connect by TCP."""
        return self._tcp_count(place, "ActiveOpens")

    def segments_received(self, place: str) -> int:
        """How many TCP segments have come to a place."""
        return self._tcp_count(place, "InSegs")

    def _tcp_count(self, place: str, name: str) -> int:
        namespace = self.world.sandbox.namespace(self.world.sandbox.find(place))
        text = run_inside(namespace, Path("/proc/thread-self/net/snmp").read_text)
        names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index(name)])

    def table(self, node: str, name: str) -> list[Report]:
        """A table of a node's agent, with its failures seen to be none."""
        reply = self.reply(node, name)
        assert not reply["failures"], reply["failures"]
        return list(reply["rows"])

    def reply(self, node: str, name: str) -> Report:
        """`/tables/<name>` of a node's agent."""
        ask = partial(get, "agent", AGENT, f"/tables/{name}")
        reply: Report = json.loads(run_inside(self.world.sandbox.namespace(self.node(node)), ask))
        return reply

    def status(self, place: str) -> Report:
        """`/status` of a node's agent."""
        ask = partial(get, "agent", AGENT, "/status")
        reply: Report = json.loads(run_inside(self.world.sandbox.namespace(self.node(place)), ask))
        return reply

    def troubles(self, part: str) -> str:
        """What `status` complains about."""
        (found,) = self.parts(part)
        return "\n".join(found.report().troubles)

    def warnings(self, part: str) -> str:
        """What `status` warns about."""
        (found,) = self.parts(part)
        return "\n".join(found.report().warnings)

    def frontends(self, node: str, name: str) -> list[Report]:
        """The rows of a service in the agent's table, by address."""
        rows = self.table(node, "frontends")
        mine = [row for row in rows if row["service"] == f"default/{name}"]
        return sorted(mine, key=lambda row: str(row["address"]))

    def backends(self, node: str, name: str, state: str = "active") -> dict[str, int]:
        """How many backends of a state each cluster has in the service's first frontend."""
        found: dict[str, int] = {}
        for row in self.frontends(node, name)[:1]:
            for backend in row["backends"]:
                if backend["state"] == state:
                    found[backend["cluster"]] = found.get(backend["cluster"], 0) + 1
        return found

    def wait_for_backends(self, name: str, node: str | None = None, /, **wanted: int) -> None:
        """Wait until exactly so many backends of each cluster are active, on every node or one."""
        for place in [node] if node else [node.place for node in self.nodes]:
            has = partial(self._has_backends, place, name, wanted)
            eventually(f"{name} has {wanted} on {place}", has)
            self.wait_for_kernel(place)

    def wait_for_kernel(self, node: str) -> None:
        """Wait until the kernel of a node holds the frontends that its agent wants it to."""
        eventually(f"the kernel of {node} holds what is wanted", lambda: same(*self.both(node)))

    def both(self, node: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """All frontends of a node with their active backends: as wanted, and as the kernel has."""
        wanted = {
            str(row["address"]): sorted(
                b["address"] for b in row["backends"] if b["state"] == "active"
            )
            for row in self.table(node, "frontends")
        }
        return wanted, {str(a): sorted(map(str, b)) for a, b in self.held(node).items()}

    def held(self, node: str) -> dict[L4Address, frozenset[L4Address]]:
        """All frontends with their backends in the kernel of a node."""
        rows = inspect.frontends(self.world.sandbox.bpffs(self.node(node)))
        return {row.address: frozenset(b for b in row.backends if b is not None) for row in rows}

    def maps(self, node: str) -> Report:
        """What `clustermesh show maps` prints on a node."""
        bpffs = str(self.world.sandbox.bpffs(self.node(node)))
        command = ("clustermesh", "show", "maps", "-o", "json", "--bpffs", bpffs)
        held: Report = json.loads(self.run(node, *command))
        return held

    def cluster_ips(self, cluster: str, name: str) -> Sequence[str]:
        """The addresses of a service in a cluster: the IPv4 one first, if there are both."""
        file = self.manifests_dir(cluster) / "applied" / f"service.default.{name}.yaml"
        ips: list[str] = yaml.safe_load(file.read_text())["spec"]["clusterIPs"]
        return ips

    def etcdctl(self, cluster: str, *command: str, value: bytes = b"") -> bytes:
        """
        What etcdctl prints, as the administrator of a cluster's etcd; `value` is its input.

        A process of its own: gRPC connects in threads that it keeps, and those of this process
        may be in the network of another sandbox.
        """
        store = self.world.sandbox.directory / cluster / "certs"
        user = [f"--cacert={store}/ca.crt", f"--cert={store}/admin.crt", f"--key={store}/admin.key"]
        etcdctl = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints=https://127.0.0.1:2379", *user]
        place = self.world.sandbox.cluster(cluster).control.place
        done = subprocess.run(
            self._inside(place, [*etcdctl, *command]),
            check=True,
            env=_environment(),
            input=value,
            stdout=subprocess.PIPE,
            timeout=30 * PATIENCE,
        )
        return done.stdout

    def save(self, directory: Path) -> None:
        """Write down everything there is to know, for somebody who looks for a cause."""
        directory.mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            home = directory / node.place
            home.mkdir(parents=True, exist_ok=True)
            with _noted(home / "tables.error"):
                for table in self.status(node.place)["tables"]:
                    reply = self.reply(node.place, table)
                    (home / f"{table}.json").write_text(json.dumps(reply, indent=1))
            with _noted(home / "maps.error"):
                maps = read_maps(self.world.sandbox.bpffs(node))
                (home / "maps.json").write_text(json.dumps(maps, indent=1))
            for name, command in _LOOKS.items():
                with _noted(home / f"{name}.error"):
                    (home / f"{name}.txt").write_text(self.run(node.place, *command.split()))
        for part in self.world.parts():
            with _noted(directory / "log.error"):
                log = directory / f"{part.name.replace('/', '-')}.log"
                log.write_bytes(part.log.read_bytes())

    def _has_backends(self, node: str, name: str, wanted: Mapping[str, int]) -> bool:
        return same(self.backends(node, name), wanted)

    def _inside(self, place: str, command: Sequence[str]) -> list[str]:
        sandbox = self.world.sandbox
        found = sandbox.find(place)
        cgroup = cgroup_mount() / sandbox.cgroup_of(found)
        return process.inside(sandbox.namespace(found), cgroup, command)

    def _manifests(self, cluster: str) -> Any:
        return self.world.manifests(self.world.sandbox.cluster(cluster))

    def _with_file(self, do: Callable[..., object], objects: Iterable[Mapping[str, Any]]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(objects, file)
            file.flush()
            do(Path(file.name), self.world.is_running)


_LOOKS: Final = {
    "addresses": "ip address show",
    "routes": "ip route show table all",
    "routes6": "ip -6 route show table all",
    "rules": "ip rule show",
    "neighbours": "ip neighbour show",
    "counters": "nstat -az",
}


def bring_up(name: str, *flags: str) -> Mesh:
    """A new sandbox, by the command that a user has."""
    cli("sandbox", "up", "--name", name, f"--timeout={60 * PATIENCE:g}", *flags)
    return Mesh(load(name))


def cli(*arguments: str, code: int = 0) -> str:
    """The output of `clustermesh`, that ends with an exit code."""
    command = [CLI, *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=100 * PATIENCE
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, f"clustermesh {' '.join(arguments)}: {done.returncode}: {said}"
    return said


def call_command(mode: str, host: object, port: int, *flags: str) -> list[str]:
    """The command that makes calls; with `-o json` it reports what `Mesh.call` returns."""
    module = ("-m", "clustermesh.sandbox.call")
    return [sys.executable, *module, mode, str(host), str(port), "-o", "json", *flags]


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": search_path()}


def same(found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> bool:
    assert found == wanted, f"{found} instead of {wanted}"
    return True  # an empty mapping is one too


@contextlib.contextmanager
def _noted(file: Path) -> Iterator[None]:
    """Write down why something could not be saved: it is part of the picture."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the test has failed already, and that counts
        file.write_text(f"{error}\n")
